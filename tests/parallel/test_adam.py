"""Tests of Adam against torch.optim, up to the rounding of float64."""

import copy

import pytest
import torch
from megatron.core import optimizer as megatron_optimizer
from megatron.core.optimizer import distrib_optimizer

from megatron_prime.parallel.adam import Adam, install_without_fused

SHAPES = [(3, 4), (5,), (1,), (2, 2, 2)]
SETTINGS = {"betas": (0.8, 0.95), "eps": 1e-6}


def fresh_parameters():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_() for shape in SHAPES]


def set_gradients(parameters, step):
    generator = torch.Generator().manual_seed(100 + step)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, dtype=torch.float64, generator=generator)


def run(optimizer, parameters, steps):
    for step in steps:
        set_gradients(parameters, step)
        optimizer.step()


def groups(parameters):
    return [
        {"params": parameters[:2], "lr": 0.03, "weight_decay": 0.1},
        {"params": parameters[2:], "lr": 0.007, "weight_decay": 0.0},
    ]


@pytest.mark.parametrize(
    ("adam_w_mode", "oracle_type"), [(True, torch.optim.AdamW), (False, torch.optim.Adam)]
)
def test_updates_equal_torch(adam_w_mode, oracle_type):
    mine, theirs = fresh_parameters(), fresh_parameters()
    adam = Adam(groups(mine), **SETTINGS, adam_w_mode=adam_w_mode)
    oracle = oracle_type(groups(theirs), **SETTINGS, foreach=False)
    for step in range(6):
        run(adam, mine, [step])
        run(oracle, theirs, [step])
        for ours, expected in zip(mine, theirs, strict=True):
            torch.testing.assert_close(ours, expected, rtol=0, atol=1e-14)
    for ours, expected in zip(mine, theirs, strict=True):
        for moment in ("exp_avg", "exp_avg_sq"):
            torch.testing.assert_close(
                adam.state[ours][moment], oracle.state[expected][moment], rtol=1e-14, atol=0
            )
    assert [group["step"] for group in adam.param_groups] == [6, 6]


def test_a_changed_learning_rate_takes_effect():
    mine, theirs = fresh_parameters(), fresh_parameters()
    adam, oracle = Adam(mine, **SETTINGS), torch.optim.AdamW(theirs, **SETTINGS, weight_decay=0.0)
    for step in range(4):
        for optimizer, parameters in ((adam, mine), (oracle, theirs)):
            optimizer.param_groups[0]["lr"] = 0.01 * (step + 1)
            run(optimizer, parameters, [step])
    for ours, expected in zip(mine, theirs, strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-14)


def test_parameters_without_a_gradient_stay_as_they_are():
    parameters = fresh_parameters()
    before = [parameter.detach().clone() for parameter in parameters]
    adam = Adam(groups(parameters), **SETTINGS)
    adam.step()
    assert "step" not in adam.param_groups[0], "a group without gradients makes no step"
    parameters[0].grad = torch.ones_like(parameters[0])
    adam.step()
    assert not torch.equal(parameters[0], before[0])
    for parameter, old in zip(parameters[1:], before[1:], strict=True):
        assert torch.equal(parameter, old)


def test_continues_from_a_saved_state_bit_for_bit():
    unbroken = fresh_parameters()
    adam = Adam(groups(unbroken), **SETTINGS)
    run(adam, unbroken, range(3))
    saved = copy.deepcopy(adam.state_dict())
    resumed = [parameter.detach().clone().requires_grad_() for parameter in unbroken]
    run(adam, unbroken, range(3, 6))

    other = Adam(groups(resumed), **SETTINGS)
    other.load_state_dict(saved)
    run(other, resumed, range(3, 6))
    for ours, expected in zip(resumed, unbroken, strict=True):
        assert torch.equal(ours, expected)


def test_rejects_the_state_of_torchs_own_optimizer():
    parameters = fresh_parameters()
    oracle = torch.optim.AdamW(parameters)
    run(oracle, parameters, range(2))
    with pytest.raises(ValueError, match="bias correction"):
        Adam(fresh_parameters()).load_state_dict(oracle.state_dict())


def test_megatron_keeps_a_fused_adam(monkeypatch):
    fused = object()
    monkeypatch.setattr(megatron_optimizer, "Adam", fused)
    monkeypatch.setattr(megatron_optimizer, "USING_PYTORCH_OPTIMIZER", False)
    install_without_fused()
    assert megatron_optimizer.Adam is fused


def test_megatron_uses_this_adam_instead_of_torchs(monkeypatch):
    for module, names in (
        (megatron_optimizer, ("Adam", "USING_PYTORCH_OPTIMIZER")),
        (distrib_optimizer, ("Adam", "HAVE_APEX_OR_TE", "USING_APEX_OPTIMIZER")),
    ):
        for name in names:
            monkeypatch.setattr(module, name, None)
    monkeypatch.setattr(megatron_optimizer, "USING_PYTORCH_OPTIMIZER", True)
    install_without_fused()
    assert megatron_optimizer.Adam is distrib_optimizer.Adam is Adam
    assert distrib_optimizer.HAVE_APEX_OR_TE and distrib_optimizer.USING_APEX_OPTIMIZER
    assert not megatron_optimizer.USING_PYTORCH_OPTIMIZER
