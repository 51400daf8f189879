import itertools
import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from megatron_prime.algorithm.advantage import advantage_parts, joined_parts, prime_advantages, process_share
from megatron_prime.algorithm.implicit_reward import process_rewards_BT, reward_positions
from megatron_prime.algorithm.process_credit import credited_rewards
from megatron_prime.config.tables.advantage import AdvantageConfig
from megatron_prime.config.tables.prm import PRMConfig
from tests.algorithm import dialogues, oracle
from tests.algorithm.advantages import PLAIN, RAGGED, RELEASED, advantages_of
from tests.algorithm.dialogues import SCORED, Dialogues, random_order
from tests.algorithm.oracle import Batch, replace

ESTIMATORS = ["rloo", "grpo", "reinforce", "prm_value"]
BASELINES = ["sequence_sum", "sequence_spread", "token_mean", "released"]
NORMALIZATIONS = ["none", "batch_max"]
WHITENINGS = ["none", "joint", "per_source"]
PAPER = AdvantageConfig(process_baseline="token_mean", process_normalization="none", whitening="none")


@pytest.mark.parametrize(
    ("estimator", "normalization", "whitening"),
    list(itertools.product(ESTIMATORS, NORMALIZATIONS, WHITENINGS)),
)
@pytest.mark.parametrize("baseline", BASELINES)
def test_every_form_matches_the_loops(estimator, baseline, normalization, whitening):
    gamma_process = 1.0 if estimator == "prm_value" else 0.9
    options = AdvantageConfig(
        estimator=estimator,
        process_baseline=baseline,
        process_normalization=normalization,
        whitening=whitening,
        gamma_outcome=0.97,
        gamma_process=gamma_process,
        outcome_coef=1.5,
        process_coef=0.5,
    )
    for seed in range(3):
        batch = Batch(seed, sizes=RAGGED, soft=seed == 1, extra_padding=seed)
        result_BT = advantages_of(batch, options)
        expected_BT = batch.padded(oracle.advantages(batch, options), padding=0.0)
        torch.testing.assert_close(result_BT, expected_BT)


@pytest.mark.parametrize("options", [PAPER, RELEASED])
def test_float32_and_bfloat16_batches(options):
    batch, exact = Batch(3, sizes=RAGGED, dtype=torch.float32), Batch(3, sizes=RAGGED)
    result_BT = advantages_of(batch, options)
    assert result_BT.dtype == torch.float32
    torch.testing.assert_close(result_BT, advantages_of(exact, options).float(), rtol=1e-4, atol=1e-5)
    low_BT = advantages_of(batch, options, batch.rewards_BT.bfloat16())
    assert low_BT.dtype == torch.float32
    torch.testing.assert_close(low_BT, result_BT, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("whitening", WHITENINGS)
def test_without_process_rewards_it_is_leave_one_out_exactly(whitening):
    batch = Batch(4, sizes=RAGGED, dtype=torch.float32)
    options = replace(RELEASED, whitening=whitening)
    arguments = (batch.outcome_rewards_B, None, batch.mask_BT, batch.group_ids_B)
    absent_BT = prime_advantages(*arguments, options)
    unused_BT = advantages_of(batch, replace(options, process_coef=0.0))
    assert torch.equal(absent_BT, unused_BT)
    if whitening == "none":
        for i, outcome in enumerate(batch.outcomes):
            advantage = outcome - oracle.mean(batch.outcomes[j] for j in oracle.others(batch.ids, i))
            expected_T = torch.full((batch.lengths[i],), advantage)
            assert torch.equal(absent_BT[i, : batch.lengths[i]], expected_T)


def test_outcome_is_not_discounted_by_the_process_gamma():
    batch = Batch(5)
    silent_BT = torch.zeros_like(batch.rewards_BT)
    undiscounted_BT = advantages_of(batch, PLAIN, silent_BT)
    assert torch.equal(advantages_of(batch, replace(PLAIN, gamma_process=0.5), silent_BT), undiscounted_BT)


def test_coefficients_reach_the_advantage():
    """In the released code the two values exist and change nothing."""
    batch = Batch(6)
    silent_BT = torch.zeros_like(batch.rewards_BT)
    outcome_BT = advantages_of(batch, PLAIN, silent_BT)
    process_BT = advantages_of(batch, replace(PLAIN, outcome_coef=0.0))
    both_BT = advantages_of(batch, replace(PLAIN, outcome_coef=2.0, process_coef=0.25))
    torch.testing.assert_close(both_BT, 2 * outcome_BT + 0.25 * process_BT)
    five_BT = advantages_of(batch, replace(PLAIN, outcome_coef=5.0, process_coef=5.0, whitening="joint"))
    one_BT = advantages_of(batch, replace(PLAIN, whitening="joint"))
    torch.testing.assert_close(five_BT, one_BT, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_a_prm_equal_to_its_reference_adds_nothing(estimator, baseline, normalization):
    """Step 0: q is exactly 0, so normalisation must not make something of it."""
    batch = Batch(7, dtype=torch.float32)
    options = AdvantageConfig(
        estimator=estimator,
        process_baseline=baseline,
        process_normalization=normalization,
        whitening="none",
    )
    silent_BT = torch.zeros_like(batch.rewards_BT)
    outcome_BT = advantages_of(batch, replace(options, process_coef=0.0))
    assert torch.equal(advantages_of(batch, options, silent_BT), outcome_BT)


@pytest.mark.parametrize("estimator", ["rloo", "grpo"])
@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3, 1.0])
def test_a_constant_group_has_no_outcome_advantage(estimator, value):
    batch = Batch(8, dtype=torch.float32)
    batch.outcomes = [value] * len(batch.ids)
    options = replace(PLAIN, estimator=estimator)
    assert not advantages_of(batch, options, torch.zeros_like(batch.rewards_BT)).any()


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("granularity", ["token", "step", "whole"])
def test_every_granularity_runs_with_every_form(estimator, baseline, granularity):
    batch = Batch(12, sizes=RAGGED)
    step_ids_BT = (torch.arange(batch.num_columns) // 3).repeat(len(batch.ids), 1)
    args = (batch.rewards_BT, torch.zeros_like(batch.rewards_BT), batch.mask_BT)
    rewards_BT = process_rewards_BT(*args, PRMConfig(granularity=granularity), step_ids_BT)
    positions_BT = reward_positions(batch.mask_BT, granularity, step_ids_BT)
    for options in (replace(PLAIN, whitening="per_source"), RELEASED):
        options = replace(options, estimator=estimator, process_baseline=baseline)
        for positions in (None, positions_BT):
            result_BT = advantages_of(batch, options, rewards_BT, positions_BT=positions)
            assert result_BT.isfinite().all()
            assert result_BT[batch.mask_BT].any()


def test_empty_response_takes_part_in_the_outcome_baseline_only():
    mask_BT = torch.tensor([[1, 1], [0, 0]])
    for baseline in BASELINES:
        options = replace(PLAIN, process_baseline=baseline)
        result_BT = prime_advantages(
            torch.tensor([1.0, 0.0]), torch.zeros(2, 2), mask_BT, torch.zeros(2).long(), options
        )
        assert result_BT.tolist() == [[1.0, 1.0], [0.0, 0.0]]


def test_bad_options_are_explained():
    cases = (
        ({"estimator": "a b"}, "estimator\n.*neither a name nor an import path"),
        ({"process_baseline": "mean"}, "process_baseline\n.*'sequence_sum', 'sequence_spread'"),
        ({"process_normalization": "batch_norm"}, "process_normalization\n"),
        ({"whitening": "yes"}, "whitening\n"),
        ({"gamma_outcome": 1.5}, "gamma_outcome\n.*less than or equal to 1"),
        ({"gamma_process": -0.1}, "gamma_process\n"),
        ({"process_coef": -1.0}, "process_coef\n.*greater than or equal to 0"),
    )
    for kwargs, message in cases:
        with pytest.raises(ValueError, match=message):
            AdvantageConfig(**kwargs)


def test_bad_batches_are_explained():
    batch = Batch(14, dtype=torch.float32)
    good = {
        "outcome_rewards_B": batch.outcome_rewards_B,
        "process_rewards_BT": batch.rewards_BT,
        "response_mask_BT": batch.mask_BT,
        "group_ids_B": batch.group_ids_B,
    }
    holes_BT = torch.ones_like(batch.mask_BT)
    holes_BT[0, 0] = False
    diverged_BT = batch.rewards_BT.clone()
    diverged_BT[2, 0] = math.inf
    cases = (
        ({"outcome_rewards_B": batch.outcome_rewards_B * math.nan}, "is_verified first"),
        ({"outcome_rewards_B": batch.outcome_rewards_B[:1]}, "outcome_rewards_B has shape"),
        ({"process_rewards_BT": batch.rewards_BT[:, :1]}, "process_rewards_BT has shape"),
        ({"process_rewards_BT": diverged_BT}, "PRM has diverged"),
        ({"response_mask_BT": holes_BT}, "padded on the right"),
        ({"group_ids_B": torch.arange(len(batch.ids))}, "at least two responses per prompt"),
        ({"process_positions_BT": torch.ones_like(batch.mask_BT)}, "marks padding"),
    )
    for change, message in cases:
        with pytest.raises(ValueError, match=message):
            prime_advantages(config=RELEASED, **{**good, **change})
    alone = {**good, "group_ids_B": torch.arange(len(batch.ids))}
    reinforce = replace(RELEASED, estimator="reinforce")
    assert prime_advantages(config=reinforce, **alone).isfinite().all()


every_form = st.builds(
    AdvantageConfig,
    estimator=st.sampled_from(ESTIMATORS),
    process_baseline=st.sampled_from(BASELINES),
    process_normalization=st.sampled_from(NORMALIZATIONS),
    whitening=st.sampled_from(WHITENINGS),
    gamma_outcome=st.floats(0.5, 1),
)


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    options=every_form,
    sizes=st.lists(st.integers(2, 5), min_size=1, max_size=4),
    num_columns=st.integers(0, 5),
)
def test_row_order_group_names_and_padding_do_not_matter(seed, options, sizes, num_columns):
    """Length balancing tears groups apart; a batch held in another order gets the same rows."""
    batch, wide = (Batch(seed, sizes=tuple(sizes), extra_padding=n) for n in (0, num_columns))
    straight_BT = advantages_of(batch, options)
    order = torch.randperm(len(batch.ids), generator=torch.Generator().manual_seed(seed))
    wide.ids = [1000 - 7 * i for i in wide.ids]
    shuffled_BT = advantages_of(wide, options, rows=order)
    torch.testing.assert_close(shuffled_BT[:, : batch.num_columns], straight_BT[order])
    assert not shuffled_BT[:, batch.num_columns :].any()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), estimator=st.sampled_from(ESTIMATORS), baseline=st.sampled_from(BASELINES))
def test_without_batch_statistics_each_group_stands_alone(seed, estimator, baseline):
    """Sharding by whole groups is exact where nothing is normalised over the batch."""
    batch = Batch(seed, sizes=RAGGED)
    options = replace(PLAIN, estimator=estimator, process_baseline=baseline)
    whole_BT = advantages_of(batch, options)
    for group in batch.group_ids_B.unique():
        rows = (batch.group_ids_B == group).nonzero()[:, 0]
        torch.testing.assert_close(advantages_of(batch, options, rows=rows), whole_BT[rows])


@pytest.mark.parametrize("options", [RELEASED, replace(PLAIN, process_normalization="batch_max")])
def test_batch_statistics_taken_by_rank_would_differ(options):
    """The released code's trap is real: normalising each rank's share is another result."""
    batch = Batch(15)
    whole_BT = advantages_of(batch, options)
    by_rank_BT = torch.zeros_like(whole_BT)
    for group in batch.group_ids_B.unique():
        rows = (batch.group_ids_B == group).nonzero()[:, 0]
        by_rank_BT[rows] = advantages_of(batch, options, rows=rows)
    assert float((by_rank_BT - whole_BT).abs().max()) > 0.05


@pytest.mark.parametrize("estimator", ["rloo", "grpo", "reinforce"])
def test_penalties_are_part_of_the_outcome_alone(estimator):
    options = replace(PLAIN, estimator=estimator, gamma_outcome=0.9)
    batch = Batch(4, sizes=RAGGED, soft=True)
    penalties_B = -torch.rand(len(batch.ids), dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def advantages(outcomes_B, penalties_B=None):
        arguments = (batch.rewards_BT, batch.mask_BT, batch.group_ids_B, options)
        return prime_advantages(outcomes_B, *arguments, outcome_penalties_B=penalties_B)

    # Halved, so that the penalised outcomes can also be given as plain outcomes of [0, 1].
    halves_B = batch.outcome_rewards_B / 2 + 0.5
    torch.testing.assert_close(
        advantages(halves_B, penalties_B / 2), advantages(halves_B + penalties_B / 2), rtol=0, atol=1e-12
    )
    with pytest.raises(ValueError, match="outcome_penalties_B has shape"):
        advantages(halves_B, penalties_B[:2])


def parts_of(batch, options, rewards_BT):
    return advantage_parts(batch.outcome_rewards_B, rewards_BT, batch.mask_BT, batch.group_ids_B, options)


@pytest.mark.parametrize("whitening", WHITENINGS)
@pytest.mark.parametrize("estimator", ["rloo", "prm_value"])
def test_the_share_of_the_process_rewards_matches_the_loops(estimator, whitening):
    options = replace(RELEASED, estimator=estimator, whitening=whitening, outcome_coef=1.5, process_coef=0.5)
    batch = Batch(16, sizes=RAGGED, extra_padding=2)
    one_source = replace(options, whitening="none" if whitening == "joint" else whitening)
    spreads = []
    for coefs in ({"process_coef": 0.0}, {"outcome_coef": 0.0}):
        flat = [value for row in oracle.advantages(batch, replace(one_source, **coefs)) for value in row]
        spreads.append(math.sqrt(oracle.mean((value - oracle.mean(flat)) ** 2 for value in flat)))
    parts_BT = parts_of(batch, options, batch.rewards_BT)
    assert process_share(parts_BT, batch.mask_BT) == pytest.approx(spreads[1] / sum(spreads), rel=1e-9)
    together_BT = joined_parts(parts_BT, batch.mask_BT, options)
    assert torch.equal(together_BT, advantages_of(batch, options))


@pytest.mark.parametrize(
    ("outcomes", "rewards", "share"), [(0, 0, 0.0), (1, 0, 0.0), (0, 1, 1.0), (1, None, 0.0)]
)
def test_the_share_is_finite_where_a_part_is_constant_or_missing(outcomes, rewards, share):
    batch = Batch(17)
    if not outcomes:
        batch.outcomes = [0.0] * len(batch.ids)
    rewards_BT = None if rewards is None else batch.rewards_BT.nan_to_num() * rewards
    assert process_share(parts_of(batch, PLAIN, rewards_BT), batch.mask_BT) == share


@pytest.mark.parametrize("whitening", WHITENINGS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_trust_by_pair_accuracy_matches_the_loops(estimator, whitening):
    options = replace(RELEASED, estimator=estimator, whitening=whitening, process_trust="pair_accuracy")
    trusts = []
    for seed in range(20, 28):
        batch = Batch(seed, sizes=RAGGED, soft=seed % 2 == 1, extra_padding=1)
        trusts.append(oracle.pair_trust(batch))
        expected_BT = batch.padded(oracle.advantages(batch, options), padding=0.0)
        torch.testing.assert_close(advantages_of(batch, options), expected_BT)
    assert min(trusts) == 0.0 and max(trusts) > 0.2, trusts


@pytest.mark.parametrize(
    ("scores", "trust"),
    [
        ([3.0, 1.0, 2.0, 0.0], 1.0),  # each right response above each wrong one
        ([3.0, 0.0, 1.0, 2.0], 0.5),
        ([1.0, 1.0, 1.0, 1.0], 0.0),
        ([0.0, 3.0, 1.0, 2.0], 0.0),  # worse than chance
    ],
)
def test_process_rewards_count_as_far_as_they_prefer_right_responses(scores, trust):
    outcomes_B, mask_BT, groups_B = (
        torch.tensor([1.0, 0.0, 1.0, 0.0]),
        torch.ones(4, 2),
        torch.zeros(4).long(),
    )
    rewards_BT = torch.tensor(scores)[:, None] / 2 * mask_BT
    full = replace(PLAIN, outcome_coef=0.0)
    trusted_BT, full_BT = (
        prime_advantages(outcomes_B, rewards_BT, mask_BT, groups_B, options)
        for options in (replace(full, process_trust="pair_accuracy"), full)
    )
    torch.testing.assert_close(trusted_BT, trust * full_BT)


def test_process_rewards_are_not_trusted_where_no_two_outcomes_differ():
    batch = Batch(18)
    batch.outcomes = [1.0] * len(batch.ids)
    assert not advantages_of(batch, replace(PLAIN, process_trust="pair_accuracy")).any()


def advantages_around_replies(batch, options, prm, credit, order=slice(None), with_turn_rewards=False):
    """Advantages of rows in some order, with the rewards of the batch as log-ratios."""
    ids_BT = batch.unit_ids_BT(prm.granularity)
    ids_BT = None if ids_BT is None else ids_BT[order]
    mask_BT, policy_BT = batch.mask_BT[order], batch.policy_mask_BT[order]
    silent_BT = torch.zeros_like(batch.rewards_BT)
    arguments = (batch.rewards_BT[order], silent_BT, mask_BT, prm, credit, ids_BT, policy_BT)
    credited = credited_rewards(*arguments)
    return prime_advantages(
        batch.outcome_rewards_B[order],
        credited.rewards_BT,
        mask_BT,
        batch.group_ids_B[order],
        options,
        credited.positions_BT,
        policy_mask_BT=policy_BT,
        turn_rewards_BT=batch.padded(batch.turn_rewards)[order] if with_turn_rewards else None,
    )


around_replies = {
    "seed": st.integers(0, 10**6),
    "options": st.builds(
        AdvantageConfig,
        estimator=st.sampled_from([*ESTIMATORS, "istar"]),
        process_baseline=st.sampled_from(BASELINES),
        process_normalization=st.sampled_from(NORMALIZATIONS),
        whitening=st.sampled_from(WHITENINGS),
        process_trust=st.sampled_from(["full", "pair_accuracy"]),
        gamma_outcome=st.floats(0.5, 1),
        gamma_process=st.floats(0, 1),
    ),
    "prm": st.builds(
        PRMConfig,
        beta=st.just(1.0),
        granularity=st.sampled_from(["token", "step", "turn", "whole"]),
        scored_tokens=st.sampled_from(SCORED),
    ),
    "credit": st.sampled_from(["own", "hindsight", "observation", "min"]),
    "with_turn_rewards": st.booleans(),
}


@settings(max_examples=150, deadline=None)
@given(**around_replies)
def test_advantages_around_replies_match_the_loops(seed, options, prm, credit, with_turn_rewards):
    """In any order of the rows and with poison in the padding, in every combination of the options."""
    # A response without a reply then has no position, of which the loops would take a mean.
    assume(prm.granularity != "token" or (credit != "observation" and prm.scored_tokens != "environment"))
    batch = Dialogues(seed, extra_padding=seed % 3)
    marks = [batch.positions(i, prm.granularity, prm.scored_tokens, credit) for i in range(len(batch.ids))]
    credited = [
        batch.process_rewards(i, row, prm.granularity, prm.scored_tokens, credit)
        for i, row in enumerate(batch.rewards)
    ]
    if credit == "min":
        credited = dialogues.weighted_to_the_minimum(credited, marks)
    order = random_order(len(batch.ids), seed)
    result_BT = advantages_around_replies(batch, options, prm, credit, order, with_turn_rewards)
    expected = dialogues.advantages(batch, options, credited, marks, with_turn_rewards)
    torch.testing.assert_close(result_BT, batch.padded(expected, padding=0.0)[order], rtol=1e-6, atol=1e-7)
    assert not result_BT[~batch.policy_mask_BT[order]].any()


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), options=every_form)
def test_a_policy_mask_without_holes_changes_no_bit(seed, options):
    batch = Batch(seed, sizes=RAGGED, dtype=torch.float32)
    arguments = (batch.outcome_rewards_B, batch.rewards_BT, batch.mask_BT, batch.group_ids_B, options)
    without_BT = prime_advantages(*arguments)
    for mask_BT in (batch.mask_BT, batch.mask_BT.float()):
        assert torch.equal(prime_advantages(*arguments, policy_mask_BT=mask_BT), without_BT)


def test_rewards_of_turns_are_added_to_the_outcomes():
    """Two turns with a reply between: the first turn gets both rewards, the second its own."""
    policy_BT = torch.tensor([[1, 0, 1], [1, 1, 0]])
    mask_BT = torch.tensor([[1, 1, 1], [1, 1, 0]])
    rewards_BT = torch.tensor([[0.25, 0.0, 0.5], [0.0, 1.0, math.nan]])
    outcomes_B, groups_B = torch.tensor([1.0, 0.0]), torch.zeros(2).long()
    for estimator, expected in (
        ("rloo", [[0.75, 0.0, 0.5], [-0.75, -0.75, 0.0]]),
        ("reinforce", [[1.75, 0.0, 1.5], [1.0, 1.0, 0.0]]),
    ):
        result_BT = prime_advantages(
            outcomes_B,
            None,
            mask_BT,
            groups_B,
            replace(PLAIN, estimator=estimator),
            policy_mask_BT=policy_BT,
            turn_rewards_BT=rewards_BT,
        )
        assert result_BT.tolist() == expected
