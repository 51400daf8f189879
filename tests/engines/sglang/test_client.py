"""Calls of a real server: its answers, its refusals, and the repetition of calls."""

import asyncio

import pytest

from megatron_prime.engines.sglang.client import (
    RetryPolicy,
    ServerRefusedError,
    ServerUnreachableError,
    SGLangClient,
)
from megatron_prime.engines.sglang.launch import LOADER
from megatron_prime.workers.ports import free_port
from tests.support.sglang_live import rename


def with_client(engine, scenario):
    async def run():
        url = engine.servers[0].url
        client = SGLangClient(url, api_key=engine.fleet.api_key(0, url), control_timeout_s=60)
        try:
            return await scenario(client)
        finally:
            await client.aclose()

    return asyncio.run(run())


def body(**changes):
    sampling = {"max_new_tokens": 4, "temperature": 0} | changes
    return {"rid": "test", "input_ids": [1, 2], "sampling_params": sampling, "return_logprob": True}


def test_waits_grow_up_to_a_bound_and_are_jittered():
    policy = RetryPolicy(first_wait_s=1, factor=3, max_wait_s=5, jitter=0.5)
    assert [policy.wait_s(failures, 0.0) for failures in (1, 2, 3, 9)] == [1, 3, 5, 5]
    assert policy.wait_s(1, 1.0) == 0.5


@pytest.mark.parametrize(("num_faults", "succeeds"), [(0, True), (2, True), (3, False)])
def test_a_call_without_an_answer_is_repeated(num_faults, succeeds):
    calls, waits = [], []

    async def call():
        calls.append(0)
        if len(calls) <= num_faults:
            raise ServerUnreachableError("no answer")
        return "answer"

    async def sleep(seconds):
        waits.append(seconds)

    run = RetryPolicy(num_tries=3).run(call, sleep)
    if succeeds:
        assert asyncio.run(run) == "answer"
    else:
        with pytest.raises(ServerUnreachableError):
            asyncio.run(run)
    assert len(calls) == min(num_faults + 1, 3) and len(waits) == len(calls) - 1


def test_a_refusal_is_not_repeated():
    calls = []

    async def call():
        calls.append(0)
        raise ServerRefusedError("no", 400)

    with pytest.raises(ServerRefusedError):
        asyncio.run(RetryPolicy().run(call))
    assert len(calls) == 1


def test_no_server_and_no_answer_in_time_are_unreachable():
    async def scenario():
        client = SGLangClient(
            f"http://127.0.0.1:{free_port()}", retry=RetryPolicy(num_tries=2, first_wait_s=0.01)
        )
        with pytest.raises(ServerUnreachableError, match="the server may have died"):
            await client.model_info()
        await client.aclose()
        server = await asyncio.start_server(lambda reader, writer: asyncio.sleep(9), "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        client = SGLangClient(f"http://127.0.0.1:{port}", request_timeout_s=0.1)
        with pytest.raises(ServerUnreachableError, match=r"no answer in 0\.1 s"):
            await client.generate({})
        await client.aclose()
        server.close()

    asyncio.run(scenario())


def test_health_and_version(live_engine):
    async def scenario(client):
        await client.check_health()
        await rename(client, "17")
        return await client.weight_version()

    assert with_client(live_engine, scenario) == "17"


def test_refusals_carry_the_servers_reason(live_engine):
    async def scenario(client):
        with pytest.raises(ServerRefusedError, match="unknown field"):
            await client.generate(body(colour="blue"))
        with pytest.raises(ServerRefusedError, match="nowhere"):
            await client.update_weights_from_disk("/nowhere", "2")
        with pytest.raises(ServerRefusedError):
            await client.end_weight_update()  # there is no session
        return await client.weight_version()

    assert with_client(live_engine, scenario).startswith("1-")


def test_checksums_follow_the_weights(live_engine, live_models):
    async def scenario(client):
        before = await client.weight_checksums()
        await client.update_weights_from_disk(str(live_models[1].path), "2")
        changed = await client.weight_checksums()
        await client.update_weights_from_disk(str(live_models[0].path), "3")
        return before, changed, await client.weight_checksums()

    before, changed, restored = with_client(live_engine, scenario)
    assert before == restored and len(before) == 1
    assert (
        before[0].keys() == changed[0].keys() and before[0]["lm_head.weight"] != changed[0]["lm_head.weight"]
    )


def test_pausing_holds_answers_back(live_engine):
    async def scenario(client):
        await client.pause_generation("retract")
        request = asyncio.ensure_future(client.generate(body()))
        await asyncio.sleep(0.3)
        assert not request.done()
        await client.continue_generation()
        whole = await request
        return whole["meta_info"]["finish_reason"]["type"]

    assert with_client(live_engine, scenario) == "length"


def test_memory_is_released_and_resumed(live_engine):
    async def scenario(client):
        await client.release_memory_occupation(["kv_cache"])
        await client.resume_memory_occupation(["kv_cache"])
        return len((await client.generate(body()))["output_ids"])

    assert with_client(live_engine, scenario) == 4


def test_a_session_without_tensors_opens_and_closes(live_engine):
    async def scenario(client):
        await client.begin_weight_update()
        with pytest.raises(ServerRefusedError):
            await client.update_weights_from_tensor(
                ["!"], load_format=LOADER, flush_cache=False, weight_version="x"
            )  # no base64
        await client.end_weight_update()

    with_client(live_engine, scenario)
