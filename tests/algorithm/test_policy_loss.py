import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_prime.algorithm.policy_loss import aggregation_weights_BT, policy_loss
from megatron_prime.config.tables.policy import PolicyConfig
from tests.algorithm import oracle
from tests.algorithm.dialogues import Dialogues
from tests.algorithm.oracle import Batch, replace

EVERYTHING = PolicyConfig(
    clip_low=0.2,
    clip_high=0.28,
    dual_clip=2.0,
    entropy_coef=0.01,
    kl_coef=0.1,
    kl_estimator="k3",
    correction="token",
    correction_high=1.3,
)
LONGEST = 9
"""The longest response that there may be, of aggregation `constant`."""
NAMES = ("logprobs", "old_logprobs", "advantages", "entropy", "ref_logprobs", "rollout_logprobs")


def rows_of(batch, seed=0):
    """The six inputs as ragged lists; far enough apart that every clip is met."""
    return {name: batch.noise(seed + k, scale=0.8) for k, name in enumerate(NAMES)}


def loss_of(batch, rows, options, mode="token", keep=None, weights_BT=None, total_weight=1.0, **replaced):
    keep = torch.arange(len(batch.ids)) if keep is None else keep
    weights_BT = aggregation_weights_BT(batch.mask_BT, mode, LONGEST) if weights_BT is None else weights_BT
    tensors = {f"{name}_BT": batch.padded(values) for name, values in rows.items()} | replaced
    return policy_loss(
        weights_BT=weights_BT[keep],
        config=options,
        total_weight=total_weight,
        **{name: t[keep] for name, t in tensors.items()},
    )


def token_weight(batch, i, mode):
    if mode == "token":
        return 1 / sum(batch.lengths)
    if mode == "constant":
        return 1 / (LONGEST * len(batch.lengths))
    return 1 / (batch.lengths[i] * len(batch.lengths))


def each_token(batch, rows):
    for i, length in enumerate(batch.lengths):
        for t in range(length):
            yield i, t, [rows[name][i][t] for name in NAMES]


def _correction(old, rollout, options):
    return 1.0 if options.correction == "auto" else min(math.exp(old - rollout), options.correction_high)


def expected_loss(batch, rows, options, mode):
    return sum(
        token_weight(batch, i, mode)
        * oracle.policy_token_loss(
            new, old, advantage, options, entropy, ref, _correction(old, rollout, options)
        )
        for i, t, (new, old, advantage, entropy, ref, rollout) in each_token(batch, rows)
    )


@pytest.mark.parametrize("mode", ["token", "sequence", "constant"])
def test_weights_follow_the_mode_and_all_but_the_constant_sum_to_one(mode):
    batch = Batch(0, extra_padding=2)
    weights_BT = aggregation_weights_BT(batch.mask_BT, mode, LONGEST)
    expected = [[token_weight(batch, i, mode)] * n for i, n in enumerate(batch.lengths)]
    torch.testing.assert_close(weights_BT, batch.padded(expected, padding=0.0).float())
    share = sum(batch.lengths) / (LONGEST * len(batch.lengths)) if mode == "constant" else 1
    assert float(weights_BT.sum()) == pytest.approx(share)


def test_metrics_are_means_of_tokens_under_constant_weights_too():
    batch = Batch(5)
    rows, weights_BT = rows_of(batch), aggregation_weights_BT(batch.mask_BT, "constant", LONGEST)
    by_token = loss_of(batch, rows, EVERYTHING)[1]
    whole = loss_of(batch, rows, EVERYTHING, weights_BT=weights_BT, total_weight=weights_BT.sum())
    parts = [
        loss_of(batch, rows, EVERYTHING, weights_BT=weights_BT, total_weight=weights_BT.sum(), keep=keep)[1]
        for keep in torch.arange(len(batch.ids)).split(5)
    ]
    for name, value in by_token.items():
        expected = value * weights_BT.sum() if name == "policy_loss" else value
        assert float(whole[1][name]) == pytest.approx(float(expected), rel=1e-5), name
        assert float(sum(part[name] for part in parts)) == pytest.approx(float(expected), rel=1e-5), name


def test_empty_responses_take_no_weight():
    mask_BT = torch.tensor([[1, 1], [0, 0], [1, 0]])
    assert aggregation_weights_BT(mask_BT, "sequence").tolist() == [[0.25, 0.25], [0, 0], [0.5, 0]]
    with pytest.raises(ValueError, match="no response token"):
        aggregation_weights_BT(torch.zeros(2, 2), "token")
    with pytest.raises(ValueError, match="'constant' needs max_response_tokens, not None"):
        aggregation_weights_BT(mask_BT, "constant")
    with pytest.raises(ValueError, match="choose one of token, sequence"):
        aggregation_weights_BT(mask_BT, "batch")


@pytest.mark.parametrize(
    ("dual_clip", "kl_estimator", "correction"),
    list(itertools.product([None, 2.0], ["k1", "k2", "k3"], ["auto", "token"])),
)
@pytest.mark.parametrize("mode", ["token", "sequence", "constant"])
def test_every_option_matches_the_loops(mode, dual_clip, kl_estimator, correction):
    options = replace(EVERYTHING, dual_clip=dual_clip, kl_estimator=kl_estimator, correction=correction)
    for seed in range(3):
        batch = Batch(seed, extra_padding=seed)
        rows = rows_of(batch, seed)
        loss, _ = loss_of(batch, rows, options, mode)
        assert float(loss) == pytest.approx(expected_loss(batch, rows, options, mode), rel=1e-6)


def test_defaults_are_plain_ppo():
    batch = Batch(1)
    rows = rows_of(batch)
    loss, metrics = loss_of(batch, {name: rows[name] for name in NAMES[:3]}, PolicyConfig())
    assert float(loss) == pytest.approx(expected_loss(batch, rows, PolicyConfig(), "token"), rel=1e-6)
    assert set(metrics) == {"policy_loss", "clip_fraction", "dual_clip_fraction", "approx_kl", "ratio_mean"}


@pytest.mark.parametrize("mode", ["token", "sequence"])
@pytest.mark.parametrize("options", [PolicyConfig(), EVERYTHING, replace(EVERYTHING, kl_estimator="k2")])
def test_gradients_match_finite_differences_of_the_loops(mode, options):
    batch = Batch(2, sizes=(2, 2))
    rows = rows_of(batch)
    logprobs_BT = batch.padded(rows["logprobs"]).requires_grad_()
    entropy_BT = batch.padded(rows["entropy"]).requires_grad_()
    loss, _ = loss_of(batch, rows, options, mode, logprobs_BT=logprobs_BT, entropy_BT=entropy_BT)
    loss.backward()
    for name, grad_BT in (("logprobs", logprobs_BT.grad), ("entropy", entropy_BT.grad)):
        if grad_BT is None:
            assert options.entropy_coef == 0
            continue
        assert not grad_BT[~batch.mask_BT].any()
        for i, t, _ in each_token(batch, rows):
            slopes = []
            for step in (1e-6, -1e-6):
                moved = {**rows, name: [list(row) for row in rows[name]]}
                moved[name][i][t] += step
                slopes.append(expected_loss(batch, moved, options, mode))
            slope = (slopes[0] - slopes[1]) / 2e-6
            assert float(grad_BT[i, t]) == pytest.approx(slope, rel=1e-4, abs=1e-8)


def test_nothing_else_receives_a_gradient():
    batch = Batch(3)
    rows = rows_of(batch)
    leaves = {f"{name}_BT": batch.padded(rows[name]).requires_grad_() for name in NAMES}
    weights_BT = aggregation_weights_BT(batch.mask_BT, "token").requires_grad_()
    loss, metrics = loss_of(batch, {}, EVERYTHING, weights_BT=weights_BT, **leaves)
    loss.backward()
    with_gradient = {name for name, leaf in leaves.items() if leaf.grad is not None}
    assert with_gradient == {"logprobs_BT", "entropy_BT"}
    assert weights_BT.grad is None
    assert not any(value.requires_grad for value in metrics.values())


def test_metrics_match_the_loops():
    batch = Batch(4)
    rows = rows_of(batch)
    _, metrics = loss_of(batch, rows, EVERYTHING)
    names = ("clip_fraction", "dual_clip_fraction", "approx_kl", "ratio_mean", "entropy")
    expected = dict.fromkeys(names, 0.0)
    for i, _, (new, old, advantage, entropy, _, _) in each_token(batch, rows):
        w, ratio = token_weight(batch, i, "token"), math.exp(new - old)
        clipped = (advantage > 0 and ratio > 1.28) or (advantage < 0 and ratio < 0.8)
        expected["clip_fraction"] += w * clipped
        expected["dual_clip_fraction"] += w * (advantage < 0 and ratio > 2)
        expected["approx_kl"] += w * (old - new)
        expected["ratio_mean"] += w * ratio
        expected["entropy"] += w * entropy
    assert expected["dual_clip_fraction"] > 0
    assert expected["clip_fraction"] > 0
    for name, value in expected.items():
        assert float(metrics[name]) == pytest.approx(value, rel=1e-6), name
    kl_and_entropy = 0.1 * metrics["ref_kl"] - 0.01 * metrics["entropy"]
    torch.testing.assert_close(loss_of(batch, rows, EVERYTHING)[0], metrics["policy_loss"] + kl_and_entropy)


def test_first_update_has_ratio_one_and_the_policy_gradient():
    batch = Batch(5)
    rows = rows_of(batch)
    logprobs_BT = batch.padded(rows["logprobs"]).requires_grad_()
    weights_BT = aggregation_weights_BT(batch.mask_BT, "token").double()
    advantages_BT = batch.padded(rows["advantages"])
    loss, metrics = policy_loss(logprobs_BT, logprobs_BT.detach(), advantages_BT, weights_BT, PolicyConfig())
    loss.backward()
    assert float(metrics["ratio_mean"]) == pytest.approx(1)
    assert float(metrics["clip_fraction"]) == float(metrics["approx_kl"]) == 0
    expected_BT = torch.where(batch.mask_BT, -weights_BT * advantages_BT, 0.0)
    torch.testing.assert_close(logprobs_BT.grad, expected_BT)


@pytest.mark.parametrize("gap", [1e4, -1e4])
@pytest.mark.parametrize("advantage", [1.0, -1.0])
@pytest.mark.parametrize("dual_clip", [None, 3.0])
def test_absurd_ratios_stay_finite(gap, advantage, dual_clip):
    logprobs_BT = torch.tensor([[gap]], requires_grad=True)
    zero_BT, one_BT = torch.zeros(1, 1), torch.ones(1, 1)
    options = replace(EVERYTHING, dual_clip=dual_clip)
    loss, metrics = policy_loss(
        logprobs_BT, zero_BT, advantage * one_BT, one_BT, options, zero_BT, zero_BT, -gap * one_BT
    )
    loss.backward()
    assert loss.isfinite()
    assert logprobs_BT.grad is not None
    assert logprobs_BT.grad.isfinite().all()
    assert all(value.isfinite() for value in metrics.values())


def test_bad_options_and_missing_tensors_are_explained():
    cases = (
        ({"clip_low": 1.0}, "clip_low\n.*less than 1"),
        ({"clip_high": 0.0}, "clip_high\n.*greater than 0"),
        ({"dual_clip": 1.0}, "dual_clip\n.*greater than 1"),
        ({"entropy_coef": -1.0}, "entropy_coef\n.*greater than or equal to 0"),
        ({"kl_estimator": "k4"}, "kl_estimator\n.*'k1', 'k2' or 'k3'"),
    )
    for kwargs, message in cases:
        with pytest.raises(ValueError, match=message):
            PolicyConfig(**kwargs)
    x_BT = torch.zeros(2, 3)
    for kwargs, missing in (
        ({"correction": "token"}, "rollout_logprobs_BT"),
        ({"entropy_coef": 0.1}, "entropy_BT"),
        ({"kl_coef": 0.1}, "ref_logprobs_BT"),
    ):
        with pytest.raises(ValueError, match=f"{missing} is missing"):
            policy_loss(x_BT, x_BT, x_BT, x_BT, PolicyConfig(**kwargs))
    with pytest.raises(ValueError, match="advantages_BT has shape"):
        policy_loss(x_BT, x_BT, torch.zeros(2, 1), x_BT, PolicyConfig())


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    mode=st.sampled_from(["token", "sequence"]),
    num_shards=st.integers(1, 6),
    num_columns=st.integers(0, 4),
    kl_estimator=st.sampled_from(["k1", "k2", "k3"]),
)
def test_microbatches_of_shuffled_padded_rows_add_up(seed, mode, num_shards, num_columns, kl_estimator):
    options = replace(EVERYTHING, kl_estimator=kl_estimator)
    batch, wide = Batch(seed), Batch(seed, extra_padding=num_columns)
    rows = rows_of(batch, seed)
    whole, whole_metrics = loss_of(batch, rows, options, mode)
    order = torch.randperm(len(batch.ids), generator=torch.Generator().manual_seed(seed))
    shards = [loss_of(wide, rows, options, mode, keep=keep) for keep in order.chunk(num_shards)]
    torch.testing.assert_close(sum(loss for loss, _ in shards), whole)
    for name, value in whole_metrics.items():
        torch.testing.assert_close(sum(metrics[name] for _, metrics in shards), value)


@pytest.mark.parametrize("mode", ["token", "sequence"])
def test_replies_of_an_environment_have_no_part_in_the_loss(mode):
    """It is that of responses without the replies, whatever stands there."""
    batch, alone = Dialogues(5, extra_padding=1), Dialogues(5)
    rows = rows_of(batch)
    for i, writers in enumerate(batch.writers):
        own = [t for t, is_policy in enumerate(writers) if is_policy]
        alone.lengths[i] = len(own)
    only = {
        name: [
            [value for value, is_policy in zip(row, writers, strict=True) if is_policy]
            for row, writers in zip(values, batch.writers, strict=True)
        ]
        for name, values in rows.items()
    }
    for values in rows.values():
        for row, writers in zip(values, batch.writers, strict=True):
            row[:] = [v if is_policy else math.nan for v, is_policy in zip(row, writers, strict=True)]
    weights_BT = aggregation_weights_BT(batch.policy_mask_BT, mode)
    loss, metrics = loss_of(batch, rows, EVERYTHING, weights_BT=weights_BT)
    expected, expected_metrics = loss_of(alone, only, EVERYTHING, mode)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-7)
    for name, value in metrics.items():
        torch.testing.assert_close(value, expected_metrics[name], rtol=1e-6, atol=1e-7)
