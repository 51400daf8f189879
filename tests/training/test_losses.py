"""Row losses are sums: any split into microbatches gives the same value, gradient and metrics as the plain formula."""

from dataclasses import replace

import pytest
import torch

from megatron_prime.algorithm.prm_loss import prm_targets
from megatron_prime.algorithm.prm_pairs import PairTargets
from megatron_prime.algorithm.prm_rows import ScoredRows
from megatron_prime.config.tables.policy import PolicyConfig
from megatron_prime.config.tables.prm import PRMConfig
from megatron_prime.training.losses import SFTRowLoss, minibatch_weights_BT
from tests.algorithm import prm_oracle
from tests.support.tiny_models import tiny_model
from tests.support.training_batches import BETA, GROUPS, PLAIN_LOSSES, ragged_batch, score_with_hf
from tests.training.training_worker import LOSSES, policy_loss, prm_loss

ROWS = [0, 2, 3, 5, 6]
SPLITS = [[ROWS], [[0], [2], [3], [5], [6]], [[6, 0], [5, 3, 2]], [[0, 2, 3], [], [5, 6]]]


@pytest.fixture(scope="module")
def batch():
    model = tiny_model("llama")
    values = ragged_batch(model)
    with torch.no_grad():
        values["logprobs"], values["entropy"] = score_with_hf(model, values["sequences"], 9)
    return values


def run_split(loss, batch, split):
    """Return the value, gradients and summed metrics over microbatches."""
    logprobs_BT = batch["logprobs"].clone().requires_grad_()
    entropy_BT = batch["entropy"].clone().requires_grad_()
    value, totals = 0.0, {}
    for rows in split:
        rows_b = torch.tensor(rows, dtype=torch.int64)
        part, metrics = loss(rows_b, logprobs_BT[rows_b], entropy_BT[rows_b])
        value = value + part
        for name, metric in metrics.items():
            assert not metric.requires_grad
            totals[name] = totals.get(name, 0.0) + metric.item()
    value.backward()
    gradients = [
        torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
        for tensor in (logprobs_BT, entropy_BT)
    ]
    return value.item(), gradients, totals


@pytest.mark.parametrize("split", SPLITS, ids=str)
@pytest.mark.parametrize("kind", LOSSES)
def test_any_split_gives_the_plain_formula(kind, split, batch):
    value, gradients, _ = run_split(LOSSES[kind](batch, ROWS), batch, [rows for rows in split if rows])
    logprobs_BT = batch["logprobs"].clone().requires_grad_()
    entropy_BT = batch["entropy"].clone().requires_grad_()
    expected = PLAIN_LOSSES[kind](batch, ROWS, logprobs_BT, entropy_BT)
    expected.backward()
    assert value == pytest.approx(expected.item(), abs=1e-6)
    for gradient, tensor in zip(gradients, (logprobs_BT, entropy_BT), strict=True):
        reference = torch.zeros_like(gradient) if tensor.grad is None else tensor.grad
        torch.testing.assert_close(gradient, reference, rtol=0, atol=1e-6)
    assert not gradients[0][[1, 4]].any(), "rows of other minibatches"


def test_metrics_add_up_over_microbatches(batch):
    for make in (policy_loss, prm_loss):
        whole = run_split(make(batch, ROWS), batch, [ROWS])[2]
        for split in SPLITS[1:3]:
            assert run_split(make(batch, ROWS), batch, split)[2] == pytest.approx(whole, abs=1e-6)


def test_policy_metrics_are_minibatch_means(batch):
    metrics = run_split(policy_loss(batch, ROWS), batch, SPLITS[1])[2]
    mask = batch["policy_mask"][ROWS]
    gap = (batch["logprobs"] - batch["old"])[ROWS][mask]
    assert metrics["approx_kl"] == pytest.approx(-gap.mean().item(), abs=1e-6)
    assert metrics["ratio_mean"] == pytest.approx(gap.exp().mean().item(), abs=1e-6)
    assert metrics["entropy"] == pytest.approx(batch["entropy"][ROWS][mask].mean().item(), abs=1e-6)
    assert 0 < metrics["clip_fraction"] < 1


def test_policy_loss_works_without_a_reference(batch):
    loss = policy_loss(batch, ROWS)
    config = PolicyConfig(**batch["settings"] | {"kl_coef": 0.0})
    loss = replace(loss, ref_logprobs_BT=None, config=config)
    _, _, metrics = run_split(loss, batch, [ROWS])
    assert "ref_kl" not in metrics


def test_the_sft_loss_is_the_mean_over_tokens(batch):
    loss = SFTRowLoss(minibatch_weights_BT(batch["mask"], ROWS, "token"))
    value, gradients, metrics = run_split(loss, batch, SPLITS[2])
    expected = -batch["logprobs"][ROWS][batch["mask"][ROWS]].mean().item()
    assert value == pytest.approx(expected, abs=1e-6)
    assert metrics == {"loss": pytest.approx(expected, abs=1e-6)}
    assert not gradients[1].any()


def test_pairwise_prm_losses_take_their_targets_from_before_the_update(batch):
    prior_rows = ScoredRows.of(batch["logprobs"], batch["ref"], batch["mask"], BETA)
    scores_B = prior_rows.scores_B
    group_ids_B = torch.tensor([0, 0, 0, 1, 1, 2, 2])
    for kind in ("dpo", "bon_acc", "bon_rm"):
        config = PRMConfig(loss=kind, beta=BETA)
        targets = prm_targets(prior_rows, batch["labels"], group_ids_B, config)
        assert isinstance(targets, PairTargets)
        loss = replace(prm_loss(batch, ROWS), config=config, targets=targets)
        sign_B = torch.where(batch["labels"] > 0, 1.0, -1.0)
        terms_B = torch.nn.functional.softplus(-sign_B * (scores_B - targets.other_scores_B))
        if kind != "dpo":
            terms_B = terms_B * targets.weights_B
        expected = terms_B[ROWS].mean().item()
        for split in SPLITS[:3]:
            assert run_split(loss, batch, split)[0] == pytest.approx(expected, abs=1e-6), kind


@pytest.mark.parametrize("kind", ["ce_intercept", "ipvrm", "noisy_and", "dpo_units"])
def test_prm_losses_of_tokens_match_the_loops_in_any_split(kind, batch):
    config, policy_BT = PRMConfig(loss=kind, beta=BETA), batch["policy_mask"]
    unit_ids_BT = (~policy_BT).int().cumsum(dim=1)
    prior_rows = ScoredRows.of(batch["old"], batch["ref"], policy_BT, BETA, unit_ids_BT)
    group_ids_B = torch.tensor(GROUPS)
    loss = replace(
        prm_loss(batch, ROWS),
        config=config,
        scored_mask_BT=policy_BT,
        unit_ids_BT=unit_ids_BT,
        targets=prm_targets(prior_rows, batch["labels"], group_ids_B, config),
    )
    listed = [
        [row[mask].tolist() for row, mask in zip(values, policy_BT, strict=True)]
        for values in (batch["logprobs"] - batch["ref"], unit_ids_BT, batch["old"] - batch["ref"])
    ]
    losses = prm_oracle.losses(kind, *listed[:2], batch["labels"].tolist(), GROUPS, BETA, listed[2])
    expected = sum(losses[row] for row in ROWS) / len(ROWS)
    whole_gradients = run_split(loss, batch, [ROWS])[1]
    for split in SPLITS[:3]:
        value, gradients, _ = run_split(loss, batch, split)
        assert value == pytest.approx(expected, rel=1e-5)
        torch.testing.assert_close(gradients, whole_gradients, rtol=0, atol=1e-6)


@pytest.mark.parametrize("aggregation", ["token", "sequence"])
def test_minibatch_weights_sum_to_one_and_are_zero_outside_the_minibatch(aggregation, batch):
    weights_BT = minibatch_weights_BT(batch["policy_mask"], ROWS, aggregation)
    assert weights_BT.shape == batch["mask"].shape
    assert weights_BT.sum().item() == pytest.approx(1, abs=1e-6)
    assert not weights_BT[[1, 4]].any()
    assert not weights_BT[~batch["policy_mask"]].any()
    by_row = weights_BT[ROWS].sum(dim=1)
    lengths = batch["policy_mask"][ROWS].sum(dim=1).float()
    expected = lengths / lengths.sum() if aggregation == "token" else torch.full((5,), 0.2)
    torch.testing.assert_close(by_row, expected)


def test_untrained_rows_have_no_prm_loss_and_do_not_count_in_its_mean(batch):
    masked = [row for row in ROWS if row not in (3, 6)]
    is_trained_B = torch.tensor([row not in (3, 6) for row in range(len(batch["sequences"]))])
    loss = replace(prm_loss(batch, masked), is_trained_B=is_trained_B)
    value, gradients, _ = run_split(loss, batch, [[0, 2], [3, 5, 6]])
    alone, alone_gradients, _ = run_split(prm_loss(batch, masked), batch, [masked])
    assert value == pytest.approx(alone, abs=1e-6)
    torch.testing.assert_close(gradients[0], alone_gradients[0], rtol=0, atol=1e-6)
    assert not gradients[0][[3, 6]].any()


@pytest.mark.parametrize("outcome", [float("nan"), -0.1, 1.5])
def test_outcomes_are_checked_once_for_all_microbatches(outcome, batch):
    loss = prm_loss(batch, ROWS)
    with pytest.raises(ValueError, match="outcome rewards"):
        replace(loss, outcome_rewards_B=torch.full_like(loss.outcome_rewards_B, outcome))
