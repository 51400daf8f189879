"""Values that are not finite are located on one rank; test_trainable.py has several ranks and whole updates."""

import json

import pytest
import torch

from megatron_prime.parallel.platform import select_platform
from megatron_prime.parallel.topology import build_topology
from megatron_prime.training.health.not_finite import (
    NAMES_SHOWN,
    Findings,
    SkippedUpdate,
    WatchedLoss,
    describe_skipped,
)


@pytest.fixture(scope="module")
def topology():
    platform = select_platform("cpu")
    platform.start_process_group()
    return build_topology(platform)


def watched(*values: float) -> WatchedLoss:
    """Return a watched loss that has returned these values, on rows (0, 1), (2, 3), ..."""
    given = iter(values)
    loss = WatchedLoss(lambda *_: (torch.tensor(next(given), requires_grad=True), {"loss": torch.zeros(())}))
    for place in range(len(values)):
        value, metrics = loss(torch.tensor([2 * place, 2 * place + 1]), torch.zeros(2, 1), torch.zeros(2, 1))
        assert value.requires_grad and set(metrics) == {"loss"}
    return loss


def test_a_watched_loss_records_the_rows_of_values_that_are_not_finite():
    assert watched().is_finite and watched(1.0, -2.0).is_finite
    assert watched(1.0, float("inf"), 2.0, float("nan")).broken_rows() == [2, 3, 6, 7]
    assert not watched(1.0, float("inf")).is_finite


def test_gradients_and_parameters_are_named(topology):
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    for parameter in module.parameters():
        parameter.main_grad = torch.zeros_like(parameter)
    module[0].weight.main_grad[0, 0] = torch.nan
    module[1].bias.data[1] = torch.inf
    update = describe_skipped("prm", module, watched(1.0), float("inf"), topology)
    assert update.by_rank == [Findings(0, [], 1, ["0.weight"], 1, ["1.bias"])]
    assert update.summary() == "gradients of 0.weight (ranks 0); parameters of 1.bias (ranks 0)"
    assert json.loads(json.dumps(update.to_dict(), allow_nan=False))["grad_norm"] == "inf"


def test_long_lists_are_shortened_with_a_count(topology):
    module = torch.nn.ModuleList(torch.nn.Linear(1, 1) for _ in range(NAMES_SHOWN))
    for parameter in module.parameters():
        parameter.data.fill_(torch.nan)
    (found,) = describe_skipped("policy", module, watched(), 1.0, topology).by_rank
    assert (len(found.parameters), found.num_parameters) == (NAMES_SHOWN, 2 * NAMES_SHOWN)


def test_an_overflow_of_only_the_norm_is_named():
    update = SkippedUpdate("policy", float("inf"), [Findings(0, [], 0, [], 0, [])])
    assert "norm alone" in update.summary()
