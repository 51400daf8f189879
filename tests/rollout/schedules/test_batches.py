"""Without overlap the source of batches is the collector, and a batch that older weights sampled is given back."""

from megatron_prime.config.tables.filter import FilterConfig
from megatron_prime.rollout.collector import BatchSize, Collector, NoBatch
from megatron_prime.rollout.held_batch import HeldBatch
from megatron_prime.rollout.prompt_queue import PromptQueue
from megatron_prime.rollout.schedules.batches import OnPolicy
from megatron_prime.rollout.verification import RolloutVerifier
from megatron_prime.types import SamplingParams
from tests.support.rollout_doubles import (
    BAD,
    GOOD,
    CountingStream,
    ScriptedEngine,
    WordTokenizer,
    verify_words,
)


def test_each_batch_is_collected_when_it_is_needed_and_nothing_ahead():
    stream, engine = PromptQueue(CountingStream()), ScriptedEngine(lambda _: [[GOOD], [BAD]])
    collector = Collector(
        engine,
        stream,
        RolloutVerifier(verify_words, WordTokenizer()),
        SamplingParams(4),
        FilterConfig(),
        BatchSize(2, 2),
    )
    source = OnPolicy(collector, stream)
    batch = source.collect(0)
    source.collect_ahead(0)
    source.finish()
    assert [rollout.prompt.index for rollout in batch.rollouts] == [0, 0, 1, 1]
    assert stream.state_dict()["num_taken"] == 2 and source.held is None
    assert source.last_records == collector.last_records
    assert source.state_dict() == collector.state_dict()


def test_a_batch_from_older_weights_is_sampled_again():
    class Position:
        def __init__(self) -> None:
            self.state = {}

        def load_state_dict(self, state):
            self.state = state

    collector, prompts, warnings = Position(), Position(), []
    held = HeldBatch(3, NoBatch({}, "nothing"), [], [], {"offset": 4}, {"keep_rate": 0.5})
    OnPolicy(collector, prompts, warnings.append).resume({"keep_rate": 0.25}, held)
    assert (prompts.state, collector.state) == ({"offset": 4}, {"keep_rate": 0.5})
    assert len(warnings) == 1 and "step 4" in warnings[0] and "max_staleness = 0" in warnings[0]
    prompts = Position()
    OnPolicy(collector, prompts, warnings.append).resume({"keep_rate": 0.25}, None)
    assert (prompts.state, collector.state, len(warnings)) == ({}, {"keep_rate": 0.25}, 1)
