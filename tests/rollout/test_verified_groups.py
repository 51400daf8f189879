"""Groups pass from the engine to the verifier, and are counted on the way."""

from megatron_prime.rollout.verification import RolloutVerifier
from megatron_prime.rollout.verified_groups import verified_groups
from megatron_prime.types import SamplingParams
from tests.rollout.test_collector import MIXED
from tests.support.rollout_doubles import CountingStream, ScriptedEngine, WordTokenizer, verify_words


def test_groups_are_in_flight_then_open_and_then_finished():
    engine = ScriptedEngine(lambda index: MIXED, finish_next=lambda numbers: numbers[:1])
    verifier = RolloutVerifier(verify_words, WordTokenizer())
    with verified_groups(engine, verifier, SamplingParams(4), 2, 7) as groups:
        groups.submit(CountingStream().next(3))
        assert (groups.num_in_flight, groups.num_open) == (3, 3)
        found = {}
        while groups.num_open:
            before = groups.num_open
            found |= dict(groups.finished())
            assert groups.num_open <= before
    assert {number: [each.outcome_reward for each in group] for number, group in found.items()} == {
        number: [1.0, 0.0] for number in range(3)
    }
