"""Compares bytes with counts by hand, with and without offloading and colocated engines."""

import pytest

from megatron_prime.hf.mapping import ModelShape
from megatron_prime.planning.counts import rank_parameters
from megatron_prime.planning.gpus import GIB
from megatron_prime.planning.memory import kv_bytes_per_token, plan_memory, role_bytes
from tests.support.planned_runs import PUBLIC, make_run

N = 7_615_616_512
"""Number of parameters of Qwen2.5-7B, whose vocabulary needs no padding."""


def test_bytes_per_role(tmp_path):
    run = make_run(tmp_path)
    assert role_bytes(run, "policy", 0) == {
        "weights": 2 * N,
        "gradients": 4 * N,
        "optimizer": 12 * N // 8,
    }
    assert role_bytes(run, "reference", 0) == {"weights": 2 * N}
    narrow = make_run(tmp_path, platform={"device": "cpu", "dtype": "fp32"})
    assert role_bytes(narrow, "prm", 0) == {"weights": 4 * N, "gradients": 4 * N, "optimizer": N}


def test_optimizer_states_of_experts_are_sharded_over_their_replicas_only(tmp_path):
    run = make_run(tmp_path, "Qwen3-30B-A3B", 16, parallel={"expert": 4})
    count = rank_parameters(ModelShape.from_hf_config(PUBLIC["Qwen3-30B-A3B"]), run.layout, 0)
    assert role_bytes(run, "policy", 0)["optimizer"] == int(12 * (count.dense / 16 + count.expert / 4))


def test_offloaded_parts_are_resident_only_in_their_phase(tmp_path):
    everything = {"offload_reference": True, "offload_prm": True, "offload_policy_optimizer": True}
    plan, kept = plan_memory(make_run(tmp_path, memory=everything)), plan_memory(make_run(tmp_path))
    where = {name: [p for p, parts in plan.phases.items() if name in parts] for name in kept.phases["prm"]}
    assert where["reference weights"] == ["logprobs"]
    assert where["prm optimizer"] == where["prm gradients"] == where["prm weights"] == ["prm"]
    assert where["policy optimizer"] == ["policy"]
    assert where["policy weights"] == [*plan.phases]
    assert plan.host == 2 * N + 2 * N + 2 * (12 * N // 8)
    assert kept.host == 0
    assert kept.total("policy") - plan.total("policy") == 2 * N + 2 * N + 4 * N + 12 * N // 8


def test_colocated_engines_take_memory_only_during_the_rollout(tmp_path):
    plan = plan_memory(make_run(tmp_path))
    engine = plan.phases["rollout"]["engine weights"] + plan.phases["rollout"]["engine KV cache"]
    assert engine == pytest.approx(0.8 * 79.1 * GIB)
    assert "engine weights" not in plan.phases["policy"]
    beside = {"engine": "sglang", "sglang": {"colocated": False}}
    assert "engine weights" not in plan_memory(make_run(tmp_path, rollout=beside)).phases["rollout"]
    embedded = plan_memory(make_run(tmp_path, rollout={"engine": "local"}))
    assert embedded.phases["policy"]["engine weights"] == 2 * N


def test_the_plan_is_that_of_the_fullest_stage(tmp_path):
    plan = plan_memory(make_run(tmp_path, parallel={"pipeline": 4}, processes=16))
    assert plan.stage == 0, "it holds the most microbatches"
    assert plan.peak[0] in ("prm", "policy")


def test_kv_cache_bytes_per_token():
    shape = ModelShape.from_hf_config(PUBLIC["Llama-3-70B"])
    assert kv_bytes_per_token(shape) == 2 * 8 * 128 * 80 * 2
