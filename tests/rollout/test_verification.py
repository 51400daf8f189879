"""Every response receives its outcome, independent of the rank that verified it."""

import math

import pytest

from megatron_prime.rollout.verification import RolloutVerifier
from megatron_prime.types import FinishReason, Prompt, Rollout
from tests.support.rollout_doubles import (
    BAD,
    BROKEN,
    GOOD,
    FixedOutcome,
    WordTokenizer,
    run_on_ranks,
    verify_words,
)


def rollouts_ending(words):
    return [
        Rollout(Prompt(index, (1,), f"answer {index}"), 0, (7, word), (-1.0, -1.0), FinishReason.STOP, 1)
        for index, word in enumerate(words)
    ]


WORDS = [GOOD, BAD, BROKEN, GOOD, GOOD, BAD, BAD]


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 9])
def test_every_rank_has_all_outcomes_and_each_response_is_verified_once(num_ranks):
    seen = []

    def verify(pairs):
        seen.extend(pairs)
        return verify_words(pairs)

    by_rank = run_on_ranks(
        num_ranks, lambda ranks: RolloutVerifier(verify, WordTokenizer(), ranks)(rollouts_ending(WORDS))
    )
    for verified in by_rank:
        rewards = [rollout.outcome_reward for rollout in verified]
        assert [reward for reward in rewards if not math.isnan(reward)] == [1, 0, 1, 1, 0, 0]
        assert math.isnan(rewards[2])
        assert [rollout.prompt.index for rollout in verified] == list(range(7))
    assert sorted(answer for _, answer, _, _ in seen) == [f"answer {index}" for index in range(7)]
    assert ("7 good", "answer 3", "", "") in seen


def test_a_wrong_number_of_outcomes_or_a_reward_out_of_range_is_reported():
    short = RolloutVerifier(lambda pairs: [FixedOutcome(1.0)], WordTokenizer())
    with pytest.raises(RuntimeError, match="1 outcomes for 2 responses"):
        short(rollouts_ending([GOOD, BAD]))
    high = RolloutVerifier(lambda pairs: [FixedOutcome(1.5)], WordTokenizer())
    with pytest.raises(RuntimeError, match=r"outside \[0, 1\]"):
        high(rollouts_ending([GOOD]))
