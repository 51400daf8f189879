import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_prime.algorithm.groups import prior_logits_B, share_positive
from megatron_prime.algorithm.prm_loss import prm_loss, prm_metrics, prm_targets
from megatron_prime.algorithm.prm_pairs import PairTargets
from megatron_prime.algorithm.prm_rows import PriorTargets, ScoredRows
from megatron_prime.algorithm.registry import PRM_OBJECTIVES
from megatron_prime.config.tables.prm import PRMConfig
from tests.algorithm import oracle, prm_oracle
from tests.algorithm.oracle import Batch
from tests.algorithm.prm_rows import ScoredDialogues, rows_of_scores

PAIR_KINDS = ["dpo", "bon_acc", "bon_rm"]
KINDS = ["ce", "ce_intercept", *PAIR_KINDS]
TOKEN_KINDS = [*KINDS, "ipvrm", "noisy_and", "dpo_units"]


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


def token_losses(batch, kind, rows, order=None):
    """The losses of `rows`, with targets of the whole batch in another order."""
    config, objective = PRMConfig(loss=kind, beta=batch.beta), None
    order = torch.arange(rows.num_rows) if order is None else order
    before = taken(batch.scored_rows(batch.before), order)
    objective = PRM_OBJECTIVES.load(kind)(config)
    labels_B, ids_B = batch.outcome_rewards_B[order], batch.group_ids_B[order]
    targets = prm_targets(before if objective.requires.prior_scores else None, labels_B, ids_B, config)
    return objective.losses_B(taken(rows, order), labels_B, targets), targets


def taken(rows, order):
    return ScoredRows(
        rows.log_ratio_BT[order], rows.scored_mask_BT[order], rows.beta, rows.unit_ids_BT[order]
    )


@pytest.mark.parametrize("kind", TOKEN_KINDS)
@pytest.mark.parametrize("scores_replies", [True, False])
def test_losses_of_tokens_and_their_gradients_match_the_loops(kind, scores_replies):
    """Replies and ragged units included; the gradient is compared on one token of each response."""
    for seed, granularity in ((0, "turn"), (1, "step")):
        batch = ScoredDialogues(seed, granularity, scores_replies, extra_padding=seed)

        def expected(q, batch=batch):
            arguments = batch.units, batch.outcomes, batch.ids, batch.beta, batch.scored(batch.before)
            return prm_oracle.losses(kind, batch.scored(q), *arguments)

        rows = batch.scored_rows(requires_grad=True)
        losses_B, _ = token_losses(batch, kind, rows)
        assert losses_B.tolist() == pytest.approx(expected(batch.q))
        losses_B.sum().backward()
        assert rows.log_ratio_BT.grad is not None
        grad_BT = torch.where(rows.scored_mask_BT, rows.log_ratio_BT.grad, 0.0)
        for t in (0, 2):
            up = [[v + 1e-5 * (k == t) for k, v in enumerate(row)] for row in batch.q]
            down = [[v - 1e-5 * (k == t) for k, v in enumerate(row)] for row in batch.q]
            slopes = [(a - b) / 2e-5 for a, b in zip(expected(up), expected(down), strict=True)]
            assert grad_BT[:, t].tolist() == pytest.approx(slopes, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("kind", TOKEN_KINDS)
def test_values_of_prefixes_match_the_loops_and_start_without_a_change(kind):
    batch = ScoredDialogues(3, scores_replies=False)
    rows, priors_B = batch.scored_rows(), prior_logits_B(batch.outcome_rewards_B, batch.group_ids_B)
    objective = PRM_OBJECTIVES.load(kind)(PRMConfig(loss=kind, beta=batch.beta))
    logits_BL = objective.prefix_logits_BL(rows.log_ratio_BT, rows.scored_mask_BT, priors_B)
    for i, q in enumerate(batch.scored(batch.q)):
        values = iter(prm_oracle.prefix_logits(kind, q, batch.beta, priors_B[i].item()))
        expected = [next(values)]
        for t in range(batch.num_columns):
            expected.append(next(values) if rows.scored_mask_BT[i, t] else expected[-1])
        assert logits_BL[i].tolist() == pytest.approx(expected)
    zeros_BT = torch.zeros_like(rows.log_ratio_BT)
    start_BL = objective.prefix_logits_BL(zeros_BT, rows.scored_mask_BT, priors_B)
    assert torch.equal(start_BL, start_BL[:, :1].expand_as(start_BL))
    if kind != "ipvrm":
        torch.testing.assert_close(start_BL[:, 0], priors_B)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    kind=st.sampled_from(TOKEN_KINDS),
    granularity=st.sampled_from(["turn", "step"]),
    scores_replies=st.booleans(),
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=4),
)
def test_losses_of_tokens_do_not_depend_on_order_shards_or_padding(
    seed, kind, granularity, scores_replies, sizes
):
    batch = ScoredDialogues(seed, granularity, scores_replies, sizes=tuple(sizes))
    rows = batch.scored_rows()
    straight_B, targets = token_losses(batch, kind, rows)
    order = torch.randperm(rows.num_rows, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(token_losses(batch, kind, rows, order)[0], straight_B[order])
    batch.num_columns += 3
    torch.testing.assert_close(token_losses(batch, kind, batch.scored_rows())[0], straight_B)
    objective = PRM_OBJECTIVES.load(kind)(PRMConfig(loss=kind, beta=batch.beta))
    for part in order.chunk(3):
        part_targets = None if targets is None else targets.rows(part)
        part_b = objective.losses_B(taken(rows, part), batch.outcome_rewards_B[part], part_targets)
        torch.testing.assert_close(part_b, straight_B[part])


@pytest.mark.parametrize("kind", TOKEN_KINDS)
def test_a_row_without_scored_tokens_and_extreme_ones_stay_finite(kind):
    q_BT = torch.tensor([[300.0, 300.0], [-300.0, 0.0], [0.0, 0.0], [-300.0, -300.0]], requires_grad=True)
    mask_BT = torch.tensor([[True, True], [True, False], [False, False], [True, True]])
    rows = ScoredRows(q_BT, mask_BT, 1.0, torch.tensor([[0, 1]] * 4))
    for labels in ([0.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]):
        labels_B, ids_B, config = torch.tensor(labels), torch.zeros(4).long(), PRMConfig(loss=kind, beta=1.0)
        targets = prm_targets(rows, labels_B, ids_B, config)
        loss = prm_loss(rows, labels_B, torch.ones(4), config, targets)
        (grad_BT,) = torch.autograd.grad(loss, q_BT)
        assert loss.isfinite() and grad_BT.isfinite().all()


def first_error_auc(kind, num_updates):
    """AUC of td credit, right tokens over wrong ones behind prefixes without an error, on a tabular task.

    Each of 4 steps is right with probability 1/2, and a response if all its steps are: all 16 are one group. The PRM is
    a table of two log-probs a step, so that it can learn nothing else.
    """
    right_BT = torch.tensor(list(itertools.product([0, 1], repeat=4)))
    labels_B, ids_B = right_BT.prod(dim=1).double(), torch.zeros(16).long()
    mask_BT, units_BT = torch.ones(16, 4, dtype=torch.bool), torch.arange(4).expand(16, 4)
    config, columns = PRMConfig(loss=kind, beta=1.0), torch.arange(4)
    table = torch.zeros(4, 2, dtype=torch.float64, requires_grad=True)

    def rows():
        q = table.log_softmax(dim=1) - math.log(0.5)
        return ScoredRows(q[columns, right_BT], mask_BT, config.beta, units_BT)

    for _ in range(num_updates):
        targets = prm_targets(rows(), labels_B, ids_B, config)
        loss = prm_loss(rows(), labels_B, torch.full((16,), 1 / 16), config, targets)
        with torch.no_grad():
            table -= 2.0 * torch.autograd.grad(loss, table)[0]
    objective = PRM_OBJECTIVES.load(kind)(config)
    priors_B = prior_logits_B(labels_B, ids_B)
    values_BL = objective.prefix_logits_BL(rows().log_ratio_BT.detach(), mask_BT, priors_B).sigmoid()
    credit_BT, is_right_BT = values_BL.diff(dim=1), right_BT.bool()
    on_track_BT = torch.nn.functional.pad(right_BT.cumprod(dim=1)[:, :-1], (1, 0), value=1).bool()
    right, wrong = credit_BT[is_right_BT & on_track_BT], credit_BT[~is_right_BT & on_track_BT]
    return share_positive(right[:, None] - wrong).item()


@pytest.mark.parametrize("kind", TOKEN_KINDS)
def test_every_objective_finds_a_planted_first_error(kind):
    assert first_error_auc(kind, num_updates=0) == 0.5
    # A mean of many tokens hardly moves, so that the loss by a late error may be below that by an early right step.
    expected = 221 / 225 if kind == "ipvrm" else 1.0
    assert first_error_auc(kind, num_updates=3) == pytest.approx(expected, abs=1e-12)


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
