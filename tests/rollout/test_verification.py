"""Every response receives its outcome, independent of the rank that verified it."""

import json
import math
from dataclasses import replace

import pytest

from megatron_prime.rollout import background_verifier
from megatron_prime.rollout.verification import RolloutVerifier, VerifierAwayError, sample_of
from megatron_prime.sample import Sample
from megatron_prime.types import FinishReason, Prompt, Rollout, Turn
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
    assert sorted(sample.answer for sample in seen) == [f"answer {index}" for index in range(7)]
    assert Sample("7 good", "answer 3", response_ids=(7, GOOD), messages=[], turns=[]) in seen


def test_a_wrong_number_of_outcomes_or_a_reward_out_of_range_is_reported():
    short = RolloutVerifier(lambda pairs: [FixedOutcome(1.0)], WordTokenizer())
    with pytest.raises(RuntimeError, match="1 outcomes for 2 responses"):
        short(rollouts_ending([GOOD, BAD]))
    high = RolloutVerifier(lambda pairs: [FixedOutcome(1.5)], WordTokenizer())
    with pytest.raises(RuntimeError, match=r"outside \[0, 1\]"):
        high(rollouts_ending([GOOD]))


class AwayServer:
    """A verifier that gives no reward to some responses until it was asked a number of times."""

    def __init__(self, num_failures, words):
        self.num_failures, self.words = num_failures, words
        self.asked = []

    def __call__(self, responses):
        self.asked.append([sample.answer for sample in responses])
        is_away = len(self.asked) <= self.num_failures
        return [
            FixedOutcome(math.nan, True, "refused")
            if is_away and sample.response_text.split()[-1] in self.words
            else outcome
            for sample, outcome in zip(responses, verify_words(responses), strict=True)
        ]


@pytest.fixture
def soon(monkeypatch):
    monkeypatch.setattr(background_verifier, "FIRST_PAUSE_S", 0.01)


@pytest.mark.parametrize("words", [("good", "bad"), ("good",), ()])
@pytest.mark.parametrize("rank_away", [0, 1])
@pytest.mark.usefixtures("soon")
def test_all_ranks_wait_until_a_server_that_is_away_for_one_is_back(words, rank_away, caplog):
    servers = [AwayServer(3 if rank == rank_away else 0, words) for rank in range(2)]

    def run(ranks):
        return RolloutVerifier(servers[ranks.rank], WordTokenizer(), ranks, 20.0)(rollouts_ending(WORDS))

    for verified in run_on_ranks(2, run):
        assert [r.outcome_reward for r in verified if not math.isnan(r.outcome_reward)] == [1, 0, 1, 1, 0, 0]
    # One response asks three times whether the server is back, and only then are the others sent.
    assert [len(part) for part in servers[rank_away].asked[1:4]] == ([1, 1, 1] if words else [])
    assert len(servers[1 - rank_away].asked) == 1, "those with a reward are not asked again"
    assert ("the reward server is away: refused" in caplog.text) == bool(words)


@pytest.mark.parametrize("rank_asked", [0, 1])
@pytest.mark.usefixtures("soon")
def test_a_request_to_stop_ends_the_wait_on_every_rank(rank_asked):
    servers = [AwayServer(10**9, ("good",)), AwayServer(0, ())]

    def run(ranks):
        verifier = RolloutVerifier(
            servers[ranks.rank], WordTokenizer(), ranks, 600.0, lambda: ranks.rank == rank_asked
        )
        with pytest.raises(
            VerifierAwayError, match="asked to stop while the reward server was away: refused"
        ):
            verifier(rollouts_ending(WORDS))

    run_on_ranks(2, run)


@pytest.mark.usefixtures("soon")
def test_an_outage_without_an_end_is_the_same_error_on_every_rank():
    servers = [AwayServer(10**9, ("good",)), AwayServer(0, ())]

    def run(ranks):
        with pytest.raises(
            VerifierAwayError, match=r"away for \d+ s \(reward\.http\.max_outage_s\): refused"
        ) as caught:
            RolloutVerifier(servers[ranks.rank], WordTokenizer(), ranks, 0.1)(rollouts_ending(WORDS))
        return str(caught.value)

    one, other = run_on_ranks(2, run)
    assert one == other
    assert len(servers[0].asked) > 2


def test_a_sample_has_what_is_known_of_prompt_and_response():
    messages, metadata = [{"role": "user", "content": "\ud800 né"}], {"level": 5, "parts": [None, 1.5]}
    prompt = Prompt(0, (1,), "42", "gsm8k", "math", json.dumps(messages), json.dumps(metadata))
    ids, turns = (5, 6, 7, 8, 9), (Turn(2, 3), Turn(4, 4), Turn(5, 5))
    rollout = Rollout(prompt, 0, ids, (-1.0,) * 5, FinishReason.LENGTH, 1, turns=turns)
    sample = sample_of(rollout, WordTokenizer())
    assert sample == Sample(
        "9", "42", "gsm8k", "math", messages, metadata, ids, "length", [("5 6", "7"), ("8", ""), ("9", "")]
    )
    alone = sample_of(replace(rollout, turns=()), WordTokenizer())
    assert (alone.response_text, alone.turns) == ("5 6 7 8 9", [])


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_no_verifier_is_asked_where_the_environment_gave_the_outcome_or_failed(num_ranks):
    given, stopped, failed, plain = rollouts_ending([BAD, GOOD, GOOD, GOOD])
    rollouts = [
        replace(given, is_judged=True, outcome_reward=0.5, reason="won"),
        replace(stopped, finish_reason=FinishReason.ABORT),
        replace(failed, finish_reason=FinishReason.ABORT, reason="the environment hung"),
        plain,
    ]
    seen = []

    def verify(asked):
        seen.extend(sample.answer for sample in asked)
        return verify_words(asked)

    for verified in run_on_ranks(
        num_ranks, lambda ranks: RolloutVerifier(verify, WordTokenizer(), ranks)(rollouts)
    ):
        assert [(each.outcome_reward, each.reason) for each in verified[:2]] == [(0.5, "won"), (1.0, "")]
        assert math.isnan(verified[2].outcome_reward) and verified[2].reason == "the environment hung"
        assert verified[3].outcome_reward == 1.0
    assert sorted(seen) == ["answer 1", "answer 3"]
