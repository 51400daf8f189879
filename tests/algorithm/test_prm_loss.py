import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_prime.algorithm.prm_loss import prm_loss, prm_metrics, prm_targets
from megatron_prime.algorithm.prm_pairs import PairTargets
from megatron_prime.algorithm.prm_rows import PriorTargets
from megatron_prime.config.tables.prm import PRMConfig
from tests.algorithm import oracle
from tests.algorithm.oracle import Batch
from tests.algorithm.prm_rows import rows_of_scores

PAIR_KINDS = ["dpo", "bon_acc", "bon_rm"]
KINDS = ["ce", "ce_intercept", *PAIR_KINDS]


def scores_of(batch, seed=11):
    return [0.7 * sum(row) for row in batch.noise(seed)]


def loss_of(scores_B, batch, kind, weights_B, before_B=None, rows=None):
    """prm_loss of scores with the targets of the whole batch, on some of its rows."""
    rows = torch.arange(len(batch.ids)) if rows is None else rows
    config = PRMConfig(loss=kind)
    before = rows_of_scores(scores_B if before_B is None else before_B)
    targets = prm_targets(before, batch.outcome_rewards_B, batch.group_ids_B, config)
    assert (targets is None) == (kind == "ce")
    targets = None if targets is None else targets.rows(rows)
    return prm_loss(
        rows_of_scores(scores_B[rows]), batch.outcome_rewards_B[rows], weights_B[rows], config, targets
    )


def expected_loss(scores, batch, kind, weights, before=None):
    before = scores if before is None else before
    total = 0.0
    for i, label in enumerate(batch.outcomes):
        if kind == "ce":
            loss = oracle.ce(scores[i], label)
        elif kind == "ce_intercept":
            loss = oracle.ce(oracle.prior_logit(batch.outcomes, batch.ids, i) + scores[i], label)
        else:
            other = oracle.pair_target(before, batch.outcomes, batch.ids, i)
            loss = oracle.pair_loss(scores[i], label, other)
            loss *= oracle.pair_weight(before, batch.outcomes, batch.ids, i, kind)
        total += weights[i] * loss
    return total


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_losses_match_the_loops(kind, soft, seed):
    batch = Batch(seed, sizes=(2, 5, 3), soft=soft)
    scores, before = scores_of(batch), scores_of(batch, seed=12)
    weights = [0.1 * (i + 1) for i in range(len(scores))]
    result = loss_of(
        torch.tensor(scores).double(),
        batch,
        kind,
        torch.tensor(weights).double(),
        torch.tensor(before).double(),
    )
    assert float(result) == pytest.approx(expected_loss(scores, batch, kind, weights, before))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_match_finite_differences_of_the_loops(kind):
    batch = Batch(3, sizes=(2, 5, 3), soft=True)
    scores, before = scores_of(batch), scores_of(batch, seed=12)
    weights = [0.1 * (i + 1) for i in range(len(scores))]
    scores_B = torch.tensor(scores, dtype=torch.float64, requires_grad=True)
    loss_of(scores_B, batch, kind, torch.tensor(weights).double(), torch.tensor(before).double()).backward()
    assert scores_B.grad is not None
    for i in range(len(scores)):
        up, down = list(scores), list(scores)
        up[i] += 1e-5
        down[i] -= 1e-5
        slope = expected_loss(up, batch, kind, weights, before)
        slope = (slope - expected_loss(down, batch, kind, weights, before)) / 2e-5
        assert float(scores_B.grad[i]) == pytest.approx(slope, rel=1e-5, abs=1e-9)


def test_first_loss_is_log_two():
    """PRM equal to its reference: every score 0, the figure people post is 0.69."""
    weights_B = torch.full((4,), 0.25)
    for label in (0.0, 0.3, 1.0):
        loss = prm_loss(rows_of_scores(torch.zeros(4)), torch.full((4,), label), weights_B, PRMConfig())
        assert float(loss) == pytest.approx(math.log(2))


def test_confident_and_wrong_stays_finite_with_a_gradient():
    """A sigmoid before the cross-entropy saturates at 1 and loses the gradient; logits do not."""
    scores_B = torch.tensor([120.0, -120.0], requires_grad=True)
    labels_B = torch.tensor([0.0, 1.0])
    loss = prm_loss(rows_of_scores(scores_B), labels_B, torch.ones(2), PRMConfig())
    loss.backward()
    assert float(loss.detach()) == pytest.approx(240)
    assert scores_B.grad is not None
    assert scores_B.grad.tolist() == [1.0, -1.0]
    targets = PairTargets(torch.zeros(2), torch.ones(2))
    rows = rows_of_scores(scores_B.detach())
    pairs = prm_loss(rows, labels_B, torch.ones(2), PRMConfig(loss="dpo"), targets)
    assert float(pairs) == pytest.approx(240)


@pytest.mark.parametrize("kind", PAIR_KINDS)
def test_targets_are_detached_and_do_not_follow_the_update(kind):
    batch = Batch(5)
    scores_B = torch.tensor(scores_of(batch), requires_grad=True)
    config = PRMConfig(loss=kind)
    rows = rows_of_scores(scores_B)
    targets = prm_targets(rows, batch.outcome_rewards_B, batch.group_ids_B, config)
    assert isinstance(targets, PairTargets)
    assert not targets.other_scores_B.requires_grad
    assert not targets.weights_B.requires_grad
    targets.other_scores_B.requires_grad_()
    weights_B = torch.ones(len(batch.ids), requires_grad=True)
    loss = prm_loss(rows, batch.outcome_rewards_B, weights_B, config, targets)
    loss.backward()
    assert targets.other_scores_B.grad is None
    assert weights_B.grad is None


def test_bad_input_is_explained():
    rows, weights_B = rows_of_scores(torch.zeros(2)), torch.ones(2)
    labels_B, ids_B = torch.tensor([0.0, 1.0]), torch.zeros(2).long()
    ce, dpo, bon_rm = PRMConfig(), PRMConfig(loss="dpo"), PRMConfig(loss="bon_rm")
    short = PairTargets(torch.ones(1), torch.ones(2))
    cases = (
        ((rows, labels_B, weights_B, PRMConfig(loss="mse")), "known names are "),
        ((rows, labels_B, weights_B, dpo), "needs targets"),
        ((rows, labels_B, weights_B, bon_rm), "needs targets"),
        ((rows, labels_B, weights_B, PRMConfig(loss="ce_intercept")), "needs targets"),
        ((rows, labels_B, weights_B, dpo, PriorTargets(weights_B)), "needs targets"),
        ((rows, labels_B, weights_B, dpo, short), "other_scores_B has shape"),
        ((rows, torch.tensor([0.0, math.nan]), weights_B, ce), "verifier errors"),
        ((rows, torch.tensor([0.0, 2.0]), weights_B, ce), r"\[0, 1\]"),
        ((rows, labels_B, torch.ones(1), ce), "weights_B has shape"),
        ((rows, labels_B[:, None], weights_B, ce), "labels_B has shape"),
    )
    for arguments, message in cases:
        with pytest.raises(ValueError, match=message):
            prm_loss(*arguments)
    with pytest.raises(ValueError, match="verifier errors"):
        prm_targets(rows, labels_B * math.nan, ids_B, dpo)
    with pytest.raises(ValueError, match="group_ids_B has shape"):
        prm_targets(rows, labels_B, ids_B[:1], dpo)


def test_metrics_match_the_loops():
    batch = Batch(6, sizes=(2, 5, 3), soft=True)
    scores = scores_of(batch)
    metrics = prm_metrics(torch.tensor(scores), batch.outcome_rewards_B, batch.group_ids_B)
    right, pairs = 0, 0
    for i in range(len(scores)):
        for j in oracle.others(batch.ids, i):
            if batch.outcomes[i] > batch.outcomes[j]:
                pairs += 1
                right += scores[i] > scores[j]
    signs = [(s > 0) == (o > 0.5) for s, o in zip(scores, batch.outcomes, strict=True) if o != 0.5]
    assert metrics["num_pairs"] == pairs > 0
    assert metrics["pair_accuracy"] == pytest.approx(right / pairs)
    assert metrics["sign_accuracy"] == pytest.approx(oracle.mean(signs))
    assert metrics["ce"] == pytest.approx(
        oracle.mean(oracle.ce(s, o) for s, o in zip(scores, batch.outcomes, strict=True)), rel=1e-6
    )
    assert metrics["score_mean"] == pytest.approx(oracle.mean(scores), rel=1e-6)


def test_metrics_at_chance_and_without_pairs():
    metrics = prm_metrics(torch.zeros(4), torch.tensor([0.0, 1.0, 0.0, 1.0]), torch.tensor([0, 0, 1, 1]))
    assert metrics["sign_accuracy"] == metrics["pair_accuracy"] == 0.5
    assert metrics["ce"] == pytest.approx(math.log(2))
    alone = prm_metrics(torch.zeros(2), torch.ones(2), torch.tensor([0, 1]))
    assert math.isnan(alone["pair_accuracy"])
    assert alone["num_pairs"] == 0


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    kind=st.sampled_from(KINDS),
    num_shards=st.integers(1, 5),
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=4),
)
def test_shards_of_shuffled_rows_add_up(seed, kind, num_shards, sizes):
    batch = Batch(seed, sizes=tuple(sizes), soft=True)
    scores_B = torch.tensor(scores_of(batch, seed), dtype=torch.float64, requires_grad=True)
    weights_B = torch.full((len(batch.ids),), 1 / len(batch.ids))
    whole = loss_of(scores_B, batch, kind, weights_B)
    (whole_grad_B,) = torch.autograd.grad(whole, scores_B)
    order = torch.randperm(len(batch.ids), generator=torch.Generator().manual_seed(seed))
    shards = [loss_of(scores_B, batch, kind, weights_B, rows=rows) for rows in order.chunk(num_shards)]
    total = torch.stack(shards).sum()
    torch.testing.assert_close(total, whole)
    torch.testing.assert_close(torch.autograd.grad(total, scores_B)[0], whole_grad_B)
    straight = prm_metrics(scores_B, batch.outcome_rewards_B, batch.group_ids_B)
    shuffled = prm_metrics(scores_B[order], batch.outcome_rewards_B[order], batch.group_ids_B[order])
    assert shuffled == pytest.approx(straight, nan_ok=True)
