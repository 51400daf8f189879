"""Weights for the policy that sampled, and the figures that say how far it was; see `tests.algorithm.corrections`."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_prime.algorithm.correction import correction_metrics, correction_weights_BT
from megatron_prime.algorithm.registry import IMPORTANCE_RATIOS
from megatron_prime.config.tables.policy import PolicyConfig
from tests.algorithm import corrections
from tests.algorithm.dialogues import Dialogues
from tests.algorithm.oracle import Batch

FORMS = IMPORTANCE_RATIOS.names()


def rows_of(batch, seed, scale=0.5):
    return batch.noise(seed, scale), batch.noise(seed + 1, scale)


def mask_of(batch):
    return batch.policy_mask_BT if isinstance(batch, Dialogues) else batch.mask_BT


def metrics_of(batch, rows, config, keep=slice(None)):
    prox_BT, rollout_BT = (batch.padded(values)[keep] for values in rows)
    found = correction_metrics(prox_BT, rollout_BT, mask_of(batch)[keep], config)
    return {name: float(value) for name, value in found.items()}


def kish(weights):
    return sum(weights) ** 2 / (len(weights) * sum(w * w for w in weights))


def expected_metrics(batch, rows, config):
    """The metrics as loops over the policy's tokens."""
    marks = mask_of(batch).tolist()
    gaps = [
        [old - rollout for old, rollout, is_own in zip(*each, marks[i], strict=False) if is_own]
        for i, each in enumerate(zip(*rows, strict=True))
    ]
    tokens = [math.exp(gap) for row in gaps for gap in row]
    ratios = [corrections.ratio(config.correction, row, t) for row in gaps for t in range(len(row))]
    outside = [not config.correction_low <= r <= config.correction_high for r in ratios]
    return {
        "rollout_kl": sum(r - 1 - math.log(r) for r in tokens) / len(tokens),
        "rollout_token_ess": kish(tokens),
        "rollout_response_ess": kish([math.exp(sum(row)) for row in gaps if row]),
        "correction_mean": sum(corrections.bounded(r, config) for r in ratios) / len(ratios),
        "correction_outside_fraction": sum(outside) / len(outside),
    }


@pytest.mark.parametrize("outside", ["truncate", "mask"])
@pytest.mark.parametrize("form", FORMS)
def test_metrics_match_the_loops(form, outside):
    config = corrections.options(form, 0.8, 1.2, outside)
    for batch in (Batch(1, extra_padding=3), Dialogues(2)):
        rows = rows_of(batch, 5)
        expected = expected_metrics(batch, rows, config)
        assert 0 < expected["correction_outside_fraction"] < 1
        assert metrics_of(batch, rows, config) == pytest.approx(expected, rel=1e-9)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), form=st.sampled_from(FORMS), padding=st.integers(0, 4))
def test_neither_order_nor_padding_nor_sharding_of_rows_matters(seed, form, padding):
    config = corrections.options(form, 0.7, 1.5, "mask")
    batch, wide = Batch(seed, sizes=(2, 3)), Batch(seed, sizes=(2, 3), extra_padding=padding)
    rows = rows_of(batch, seed)
    order = torch.randperm(len(batch.ids), generator=torch.Generator().manual_seed(seed))
    expected = metrics_of(batch, rows, config)
    assert metrics_of(wide, rows, config, order) == pytest.approx(expected, rel=1e-9)
    whole_BT, _ = correction_weights_BT(*map(batch.padded, rows), batch.mask_BT, config)
    for keep in order.chunk(3):
        tensors = [wide.padded(values)[keep] for values in rows]
        part_BT, _ = correction_weights_BT(*tensors, wide.mask_BT[keep], config)
        torch.testing.assert_close(part_BT[:, : batch.num_columns], whole_BT[keep])
        assert part_BT[~wide.mask_BT[keep]].eq(1).all()


@pytest.mark.parametrize("form", FORMS)
def test_equal_policies_are_not_corrected(form):
    batch = Batch(3)
    rows = [batch.noise(1)] * 2
    weights_BT, is_outside_BT = correction_weights_BT(
        *map(batch.padded, rows), batch.mask_BT, corrections.options(form)
    )
    assert weights_BT.eq(1).all()
    assert not is_outside_BT.any()
    assert metrics_of(batch, rows, corrections.options(form)) == {
        "rollout_kl": 0,
        "rollout_token_ess": 1,
        "rollout_response_ess": 1,
        "correction_mean": 1,
        "correction_outside_fraction": 0,
    }


def test_importance_weights_of_responses_are_unbiased_and_those_of_tokens_are_not():
    """Two policies over all responses of two tokens of {0, 1}: expectations as sums over the four responses."""
    behaviour = {(): 0.3, (0,): 0.6, (1,): 0.2}
    prox = {(): 0.5, (0,): 0.4, (1,): 0.7}  # probability of a 1 after each prefix
    responses = [(0, 0), (0, 1), (1, 0), (1, 1)]

    def logprobs(policy):
        return [[math.log(policy[r[:t]] if r[t] else 1 - policy[r[:t]]) for t in range(2)] for r in responses]

    old, rollout = logprobs(prox), logprobs(behaviour)
    value = {(0, 0): 1.0, (0, 1): -2.0, (1, 0): 0.5, (1, 1): 3.0}
    target = sum(math.exp(sum(row)) * value[r] for row, r in zip(old, responses, strict=True))
    tensors = [torch.tensor(rows, dtype=torch.float64) for rows in (old, rollout)]
    estimates = {}
    for form in ("sequence", "token"):
        weights_BT, _ = correction_weights_BT(
            *tensors, torch.ones(4, 2, dtype=torch.bool), corrections.options(form, high=1e6)
        )
        estimates[form] = sum(
            math.exp(sum(row)) * float(weights_BT[i, 0]) * value[r]
            for i, (row, r) in enumerate(zip(rollout, responses, strict=True))
        )
    assert estimates["sequence"] == pytest.approx(target)
    assert abs(estimates["token"] - target) > 0.1


def test_effective_sizes_are_between_one_sample_and_all_and_never_overflow():
    mask_BT = torch.ones(3, 400, dtype=torch.bool)
    prox_BT = torch.zeros(3, 400, dtype=torch.float64)
    rollout_BT = prox_BT.clone()
    rollout_BT[0] = -9.0  # a product of e^3600
    found = correction_metrics(prox_BT, rollout_BT, mask_BT, PolicyConfig())
    assert set(found) == {"rollout_kl", "rollout_token_ess", "rollout_response_ess"}
    assert float(found["rollout_response_ess"]) == pytest.approx(1 / 3)
    assert 1 / 1200 < float(found["rollout_token_ess"]) < 0.34
    assert float(found["rollout_kl"]) == pytest.approx((math.exp(9) - 10) / 3)


def test_an_empty_mask_gives_zeros_and_padding_is_never_looked_at():
    nan_BT, mask_BT = torch.full((2, 3), math.nan), torch.zeros(2, 3, dtype=torch.bool)
    found = correction_metrics(nan_BT, nan_BT, mask_BT, corrections.options("sequence"))
    assert {float(value) for value in found.values()} == {0.0}


def test_bounds_are_checked():
    for kwargs, message in (
        ({"correction_high": 0.9}, "correction_high\n.*greater than or equal to 1"),
        ({"correction_low": 1.1}, "correction_low\n.*less than or equal to 1"),
        ({"correction_outside": "drop"}, "correction_outside\n.*'truncate' or 'mask'"),
    ):
        with pytest.raises(ValueError, match=message):
            PolicyConfig(**kwargs)


def test_a_response_of_two_versions_is_weighed_by_the_product_of_what_sampled_its_tokens():
    """Over all responses of two tokens, the weighted mean under the mixture is the mean under the proximal policy."""
    generator = torch.Generator().manual_seed(0)

    def table(*shape):
        return torch.randn(*shape, 3, generator=generator, dtype=torch.float64).log_softmax(-1)

    # The log-probs of the first token under version 3, and of the second, given the first, under version 4.
    first_3, second_4, prox_first, prox_second = table(), table(3), table(), table(3)
    rollout_BT = torch.stack([first_3[:, None].expand(3, 3), second_4], dim=-1).reshape(9, 2)
    prox_BT = torch.stack([prox_first[:, None].expand(3, 3), prox_second], dim=-1).reshape(9, 2)
    mask_BT = torch.ones(9, 2, dtype=torch.bool)
    config = corrections.options("sequence", 0.0, 1e6, "truncate")
    weights_BT, _ = correction_weights_BT(prox_BT, rollout_BT, mask_BT, config)
    rewards_B = torch.arange(9.0)
    found = (rollout_BT.sum(1).exp() * weights_BT[:, 0] * rewards_B).sum()
    assert float(found) == pytest.approx(float((prox_BT.sum(1).exp() * rewards_B).sum()), rel=1e-5)
