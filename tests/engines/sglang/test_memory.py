"""Memory is freed and allocated in the order that SGLang needs, and never by a server that was restarted."""

import asyncio
import os
import signal
from pathlib import Path

import pytest
import torch

from megatron_prime.config.tables.rollout import SGLangConfig
from megatron_prime.engines.sglang import server as sglang_server
from megatron_prime.engines.sglang.client import SGLangClient
from megatron_prime.engines.sglang.engine import SGLangEngine
from megatron_prime.engines.sglang.fleet import Fleet
from megatron_prime.engines.sglang.launch import LaunchPlan
from megatron_prime.engines.sglang.memory import ServerMemory, is_colocated
from megatron_prime.engines.sglang.nodes import start_servers
from megatron_prime.rollout.engine import NO_WEIGHTS, EngineError, WeightSyncError
from megatron_prime.types import SamplingParams
from tests.engines.sglang.disk_push import push
from tests.engines.sglang.tiny_plan import tiny_plan
from tests.support.sglang_live import attachment, live_prompts, sglang_settings

RELEASE = [
    ["/pause_generation"],
    ["/release_memory_occupation", "kv_cache", "cuda_graph", "weights"],
    ["/continue_generation"],
]
WAKE_FOR_WEIGHTS = [["/resume_memory_occupation", "weights"]]
WAKE = [["/resume_memory_occupation", "kv_cache", "cuda_graph"]]


@pytest.mark.parametrize(
    ("device", "settings", "environment", "expected"),
    [
        ("cuda", {}, {"LOCAL_WORLD_SIZE": "8"}, True),
        ("cuda", {}, {}, True),
        ("cuda", {"gpu_ids": (6, 7), "num_servers": 2}, {"LOCAL_WORLD_SIZE": "6"}, False),
        ("cuda", {"gpu_ids": (5, 7), "num_servers": 2}, {"LOCAL_WORLD_SIZE": "6"}, True),
        ("cuda", {"gpu_ids": (2,)}, {"LOCAL_WORLD_SIZE": "1", "CUDA_VISIBLE_DEVICES": "2,3"}, True),
        ("cuda", {"gpu_ids": (3,)}, {"LOCAL_WORLD_SIZE": "1", "CUDA_VISIBLE_DEVICES": "2,3"}, False),
        ("cuda", {"colocated": False}, {"LOCAL_WORLD_SIZE": "8"}, False),
        ("cuda", {"urls": ("http://node:1",)}, {"LOCAL_WORLD_SIZE": "8"}, False),
        ("cuda", {"urls": ("http://node:1",), "colocated": True}, {}, True),
        ("cpu", {}, {"LOCAL_WORLD_SIZE": "8"}, False),
        ("cpu", {"colocated": True}, {}, True),
    ],
)
def test_servers_on_the_gpus_of_training_ranks_are_colocated(device, settings, environment, expected):
    plan = LaunchPlan(Path("model"), device, "bf16", 0, SGLangConfig(**settings))
    assert is_colocated(plan, environment) is expected


def with_memory(tmp_path, scenario, is_enabled=True, **settings):
    """scenario(memory, fleet, servers) with two tiny servers that answer."""
    plan = tiny_plan(num_servers=2, **settings)
    servers = start_servers(plan, 0, tmp_path, lambda text: None)

    async def run():
        async def no_resync(server):
            raise AssertionError("nobody asked for it")

        fleet = Fleet(servers, plan.settings, no_resync)
        try:
            await fleet.clients()
            return await asyncio.wait_for(scenario(ServerMemory(fleet, is_enabled), fleet, servers), 30)
        finally:
            await fleet.aclose()

    try:
        return asyncio.run(run())
    finally:
        for server in servers:
            server.close()


async def calls_of(fleet, server):
    return (await (await fleet.client(server)).model_info())["calls"]


async def until_gone(server, pid):
    while server.pid == pid:
        await asyncio.sleep(0.02)


def test_memory_of_weights_is_allocated_first_and_no_call_is_made_twice(tmp_path):
    async def scenario(memory, fleet, servers):
        await memory.wake()
        assert await memory.release() and await memory.release()
        await memory.wake_for_weights()
        await memory.wake_for_weights()
        between = await calls_of(fleet, 0)
        await memory.wake()
        await memory.wake()
        assert await memory.release()
        await memory.wake()
        return between, await calls_of(fleet, 0), await calls_of(fleet, 1)

    between, first, second = with_memory(tmp_path, scenario)
    assert between == RELEASE + WAKE_FOR_WEIGHTS
    assert first == second == 2 * (RELEASE + WAKE_FOR_WEIGHTS + WAKE)


def test_servers_with_gpus_of_their_own_get_no_memory_calls(tmp_path):
    async def scenario(memory, fleet, servers):
        assert not await memory.release()
        await memory.wake_for_weights()
        await memory.wake()
        return await calls_of(fleet, 0)

    assert with_memory(tmp_path, scenario, is_enabled=False) == []


@pytest.mark.parametrize("phase", ["asleep", "weights"])
def test_a_restarted_server_has_its_memory_and_gets_no_call(tmp_path, phase):
    async def scenario(memory, fleet, servers):
        await memory.release()
        if phase == "weights":
            await memory.wake_for_weights()
        pid = servers[0].pid
        os.kill(pid, signal.SIGKILL)
        await until_gone(servers[0], pid)
        if phase == "asleep":
            await fleet.client(0)
        await memory.wake()
        return await calls_of(fleet, 0), await calls_of(fleet, 1), servers[0].num_starts

    first, second, num_starts = with_memory(tmp_path, scenario)
    assert (first, num_starts) == ([], 2)
    assert second == RELEASE + WAKE_FOR_WEIGHTS + WAKE


def test_a_server_that_hangs_in_a_memory_call_is_restarted(tmp_path, monkeypatch):
    monkeypatch.setattr(sglang_server, "GRACE_S", 0.5)

    async def scenario(memory, fleet, servers):
        os.kill(servers[1].pid, signal.SIGSTOP)
        await memory.release()
        await fleet.clients()
        await memory.wake()
        return await calls_of(fleet, 0), await calls_of(fleet, 1), servers[1].num_starts

    first, second, num_starts = with_memory(tmp_path, scenario, control_timeout_s=2.0)
    assert (second, num_starts) == ([], 2)
    assert first == RELEASE + WAKE_FOR_WEIGHTS + WAKE


def test_an_attached_server_that_hangs_in_a_memory_call_is_an_error(tmp_path):
    async def scenario(memory, fleet, servers):
        attached = Fleet([], SGLangConfig(urls=(servers[0].url,), control_timeout_s=0.3), None)
        await attached.clients()
        os.kill(servers[0].pid, signal.SIGSTOP)
        try:
            with pytest.raises(EngineError, match=r"server 0 may hold memory or not .*restart it"):
                await ServerMemory(attached, True).release()
        finally:
            os.kill(servers[0].pid, signal.SIGCONT)
            await attached.aclose()

    with_memory(tmp_path, scenario)


@pytest.mark.slow
def test_real_servers_sample_the_new_weights_after_freeing_their_memory(
    live_engine, live_models, tmp_path, monkeypatch
):
    calls, original = [], SGLangClient._call

    async def recorded(client, path, body, **options):
        if client.url == attached["urls"][0] and path != "/model_info":
            calls.append([path, *(body or {}).get("tags", [])])
        return await original(client, path, body, **options)

    attached = attachment(live_engine, tmp_path)
    monkeypatch.setattr(SGLangClient, "_call", recorded)
    engine = SGLangEngine(
        live_models[0].path,
        device="cpu",
        dtype="fp32",
        seed=0,
        settings=sglang_settings(**attached, colocated=True),
        run_dir=tmp_path,
    )
    prompts, params = live_prompts(8), SamplingParams(8, temperature=0)
    try:
        push(engine, live_models[0], 1)
        for version, model in ((2, live_models[1]), (3, live_models[0])):
            engine.generate(live_prompts(30), SamplingParams(20), 4, 0)
            del calls[:]
            engine.release_memory()
            assert engine.policy_version == NO_WEIGHTS
            with pytest.raises(WeightSyncError, match="can't generate"):
                engine.generate(prompts, params, 1, 0)
            push(engine, model, version)
            assert calls[:4] == RELEASE + WAKE_FOR_WEIGHTS and calls[-1:] == WAKE
            assert len(calls) > 5, "the update itself lies between"
            rollouts = engine.generate(prompts, params, 1, 0)
            with torch.no_grad():
                assert [list(rollout.response_ids) for rollout in rollouts] == [
                    model.greedy(prompt.token_ids, 8) for prompt in prompts
                ]
    finally:
        engine.close()
