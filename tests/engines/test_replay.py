from pathlib import Path

import pytest

from megatron_prime.engines.replay import replay_parts
from megatron_prime.rollout.engine import NO_WEIGHTS, EngineError
from megatron_prime.types import SamplingParams


def test_a_sync_sets_the_version_and_nothing_is_sampled():
    parts = replay_parts()
    engine, sync = parts.engine, parts.make_weight_sync(None)
    assert engine.policy_version == NO_WEIGHTS
    sync.push(3)
    assert engine.policy_version == 3
    for refused in (
        lambda: engine.generate([], SamplingParams(1), 1, 0),
        lambda: engine.stream(SamplingParams(1), 1, 0),
        lambda: engine.load_from_hf(Path()),
        lambda: sync.resync(0),
    ):
        with pytest.raises(EngineError, match="cannot sample"):
            refused()
    engine.release_memory()
    sync.close()
    engine.close()
