"""The sync is planned once, and refuses a plan of slices that the rank does not hold."""

from types import SimpleNamespace

import pytest
import torch

from megatron_prime.rehearsal.engine import RehearsedEngine, RehearsedSync
from megatron_prime.rollout.engine import NO_WEIGHTS
from tests.support.rehearsed_runs import small_run


def test_an_engine_loses_its_weights_with_its_memory():
    engine = RehearsedEngine()
    engine.policy_version = 4
    with engine.while_training():
        engine.release_memory()
    engine.close()
    assert engine.policy_version == NO_WEIGHTS


def test_the_embedded_engine_needs_no_plan(small):
    engine = RehearsedEngine()
    sync = RehearsedSync(engine, small, SimpleNamespace(), 0)
    assert sync.push(2) == {}
    assert engine.policy_version == 2
    assert sync.facts == {}


def test_a_slice_that_the_rank_does_not_hold_is_refused(tmp_path):
    servers = {"engine": "sglang", "sglang": {"num_servers": 2, "tensor": 2, "gpu_ids": [8, 9, 10, 11]}}
    run = small_run(
        tmp_path, rollout={"group_size": 4, "max_prompt_tokens": 32, "max_response_tokens": 96} | servers
    )
    policy = SimpleNamespace(named_parameters=lambda: {"embedding.word_embeddings.weight": torch.empty(1)})
    sync = RehearsedSync(RehearsedEngine(), run, policy, 0)
    with pytest.raises(ValueError, match="which this rank"):
        sync.push(0)
