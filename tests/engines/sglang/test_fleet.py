"""Failed servers come back with the right weights before they get requests, or an error is raised."""

import asyncio
import json
import logging
import os
import re
import signal
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from megatron_prime.config.tables.rollout import SGLangConfig
from megatron_prime.engines.sglang.client import ServerRefusedError, ServerUnreachableError
from megatron_prime.engines.sglang.fleet import Fleet, ask_attached
from megatron_prime.engines.sglang.generation import Generation, GenerationSettings
from megatron_prime.engines.sglang.loader.serve import KEY_VARIABLE
from megatron_prime.engines.sglang.nodes import start_servers
from megatron_prime.engines.sglang.versions import ForeignWeightsError
from megatron_prime.rollout.engine import EngineError
from megatron_prime.types import SamplingParams
from megatron_prime.workers.ports import free_port
from tests.engines.sglang.tiny_plan import tiny_plan
from tests.support import deadlines
from tests.support.sglang_live import dialogues, live_prompts


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("megatron_prime.engines.sglang.server.GRACE_S", 0.5)
    # On a busy machine a healthy server can take half a second to answer.
    monkeypatch.setattr("megatron_prime.engines.sglang.client.HEALTH_TIMEOUT_S", deadlines.seconds(1.5))
    monkeypatch.setattr("megatron_prime.engines.sglang.fleet.HEALTH_EVERY_S", 0.1)


async def update(fleet, server, version):
    client = await fleet.client(server)
    name = fleet.names.new(server, version)
    await client.update_weights_from_disk("path", name)
    fleet.names.prove(name)


def with_fleet(tmp_path, scenario, num_servers=2, **settings):
    """scenario(fleet, resynced, servers) with servers at version 3; `resynced` collects resyncs."""
    plan = tiny_plan(num_servers=num_servers, secret="of the run", **settings)
    servers = start_servers(plan, 0, tmp_path, lambda text: None)
    resynced = []

    async def run():
        async def resync(server):
            resynced.append(server)
            await update(fleet, server, fleet.policy_version)

        fleet = Fleet(servers, plan.settings, resync, plan.secret)
        try:
            for server in range(num_servers):
                await update(fleet, server, 3)
            fleet.policy_version = 3
            return await asyncio.wait_for(scenario(fleet, resynced, servers), 30)
        finally:
            await fleet.aclose()

    try:
        return asyncio.run(run())
    finally:
        for server in servers:
            server.close()


async def never(server):
    raise AssertionError(f"server {server} is resynced")


async def guarded(fleet, work):
    """Await work while the fleet is watched, and then until all servers are up again."""
    fleet.start_watch()
    main = asyncio.ensure_future(work)
    try:
        assert await fleet.wait_for(main)
        result = main.result()
        await fleet.wait_until_up()
        return result
    finally:
        main.cancel()
        await fleet.stop_watch()


async def until_down(fleet, server):
    while fleet.balancer.is_up(server):
        await asyncio.sleep(0.01)
    return []


def test_a_false_alarm_needs_no_resync(tmp_path):
    async def scenario(fleet, resynced, servers):
        fleet.report(0)
        fleet.report(0)
        await guarded(fleet, until_down(fleet, 0))
        return fleet.balancer.is_up(0), resynced, fleet.num_recoveries

    assert with_fleet(tmp_path, scenario) == (True, [], 1)


def test_a_killed_server_comes_back_and_is_resynced(tmp_path):
    async def scenario(fleet, resynced, servers):
        os.kill(servers[1].pid, signal.SIGKILL)
        fleet.report(1)
        await guarded(fleet, until_down(fleet, 1))
        return fleet.balancer.is_up(1), resynced, await fleet.weight_versions()

    assert with_fleet(tmp_path, scenario) == (True, [1], [3, 3])


def test_a_server_with_other_weights_is_resynced(tmp_path):
    async def scenario(fleet, resynced, servers):
        await update(fleet, 0, 2)
        fleet.report(0)
        await guarded(fleet, until_down(fleet, 0))
        return resynced, await fleet.weight_versions()

    assert with_fleet(tmp_path, scenario) == ([0], [3, 3])


def test_while_the_trainer_changes_the_weights_a_server_that_lost_them_waits_for_the_next_sync(tmp_path):
    async def scenario(fleet, resynced, servers):
        fleet.can_resync = False
        await fleet.client_now(1).update_weights_from_disk("path", fleet.names.new(1, 2))

        async def until_out():
            while 1 not in fleet._out:
                await asyncio.sleep(0.01)
            fleet.report(1)  # Its last requests fail one after the other.
            return [fleet.balancer.is_up(1)]

        fleet.report(1)
        fleet.report(0)  # a false alarm
        (was_up,) = await guarded(fleet, until_out())
        await update(fleet, 1, 4)
        await fleet.let_in()
        after = [fleet.balancer.is_up(server) for server in (0, 1)]
        return was_up, after, resynced, fleet._recoveries, fleet._out

    assert with_fleet(tmp_path, scenario) == (False, [True, True], [], {}, set())


def test_work_that_has_ended_does_not_wait_for_a_server_that_will_lack_its_weights(tmp_path):
    async def scenario(fleet, resynced, servers):
        fleet.can_resync = False
        os.kill(servers[0].pid, signal.SIGSTOP)
        fleet.report(0)
        ended = await guarded(fleet, until_down(fleet, 0))
        is_up, is_out = fleet.balancer.is_up(0), fleet._out == {0}
        os.kill(servers[0].pid, signal.SIGCONT)
        return ended, is_up, is_out, fleet._recoveries, resynced

    assert with_fleet(tmp_path, scenario) == ([], False, True, {}, [])


@pytest.mark.parametrize("moment", ["training begins", "a sync begins", "during a sync"])
def test_the_recovery_of_a_server_is_left_to_the_next_sync(tmp_path, moment):
    async def scenario(fleet, resynced, servers):
        os.kill(servers[1].pid, signal.SIGKILL)
        if moment == "during a sync":
            await fleet.pause(until_idle=True)
        fleet.report(1)
        await asyncio.sleep(0)
        if moment == "training begins":
            await fleet.keep_weights()
        elif moment == "a sync begins":
            await fleet.pause(until_idle=False)
        await until_down(fleet, 1)
        out = set(fleet._out)
        await update(fleet, 1, 4)
        await fleet.let_in()
        await fleet.go_on()
        fleet.report(0)  # a false alarm
        await guarded(fleet, until_down(fleet, 0))
        return out, [fleet.balancer.is_up(server) for server in (0, 1)], resynced, fleet.can_resync

    assert with_fleet(tmp_path, scenario) == ({1}, [True, True], [], True)


def test_a_server_that_dies_again_before_anybody_waits_is_recovered_again(tmp_path):
    async def scenario(fleet, resynced, servers):
        for _ in range(2):
            os.kill(servers[1].pid, signal.SIGKILL)
            fleet.report(1)
            await until_down(fleet, 1)
            while not fleet.balancer.is_up(1):
                await asyncio.sleep(0.01)
        return resynced

    assert with_fleet(tmp_path, scenario, max_restarts=5) == [1, 1]


def test_a_sync_waits_for_the_responses_in_work_and_nothing_else_begins(tmp_path):
    async def scenario(fleet, resynced, servers):
        server = await fleet.balancer.take([1])
        pausing = asyncio.ensure_future(fleet.pause(until_idle=True))
        waiting = asyncio.ensure_future(fleet.balancer.take([1]))
        await asyncio.sleep(0.01)
        states = [pausing.done(), waiting.done()]
        fleet.balancer.give_back(server, 1)
        await pausing
        states.append(waiting.done())
        await fleet.go_on()
        await waiting
        return states

    assert with_fleet(tmp_path, scenario, num_servers=1) == [False, False, False]


def test_without_a_server_that_has_the_weights_the_work_ends(tmp_path):
    async def scenario(fleet, resynced, servers):
        fleet.can_resync = False
        for server in servers:
            os.kill(server.pid, signal.SIGKILL)
            fleet.report(server.index)
        with pytest.raises(EngineError, match="no SGLang server is left with policy version 3"):
            await guarded(fleet, asyncio.sleep(30, []))
        for server in (0, 1):
            await update(fleet, server, 4)
        await fleet.let_in()
        return [fleet.balancer.is_up(server) for server in (0, 1)], resynced

    assert with_fleet(tmp_path, scenario) == ([True, True], [])


def test_foreign_weights_end_the_work(tmp_path):
    async def scenario(fleet, resynced, servers):
        await fleet.client_now(0).update_weights_from_disk("path", "3")
        fleet.report(0)
        with pytest.raises(ForeignWeightsError, match="server 0 has weights named '3'"):
            await guarded(fleet, asyncio.sleep(30, []))

    with_fleet(tmp_path, scenario)


def test_a_server_that_hangs_is_noticed_and_restarted(tmp_path):
    async def scenario(fleet, resynced, servers):
        os.kill(servers[0].pid, signal.SIGSTOP)
        await guarded(fleet, until_down(fleet, 0))
        return servers[0].num_starts, resynced

    assert with_fleet(tmp_path, scenario) == (2, [0])


def test_a_server_whose_scheduler_hangs_gets_no_requests_until_it_is_restarted(tmp_path, monkeypatch):
    """Its HTTP process goes on to state the right version, and the periodic probe has not come yet."""
    monkeypatch.setattr("megatron_prime.engines.sglang.fleet.HEALTH_EVERY_S", 600.0)

    async def scenario(fleet, resynced, servers):
        await fleet.client_now(0)._call("/hang", {})
        settings = GenerationSettings(dialogues(SamplingParams(1)), group_size=2, seed=0, stream_key=0)
        generation = Generation(fleet, settings, "test")
        generation.submit(live_prompts(3))
        groups = await generation.finished(None)
        await generation.close()
        return len(groups), generation.num_replayed >= 6, servers[0].num_starts, resynced

    assert with_fleet(tmp_path, scenario, num_servers=1, request_timeout_s=0.5) == (3, True, 2, [0])


def test_an_attached_server_whose_scheduler_hangs_is_waited_for_as_one_that_starts(tmp_path):
    async def scenario(fleet, resynced, servers):
        await fleet.client_now(0)._call("/hang", {})
        settings = SGLangConfig(urls=(servers[0].url,), startup_timeout_s=1.0)
        attached = Fleet([], settings, fleet._resync)
        attached.names, attached.policy_version = fleet.names, 3
        attached._attached_keys = [fleet.api_key(0, servers[0].url)]
        attached.report(0)
        try:
            with pytest.raises(EngineError, match=r"scheduler of SGLang server 0 .*startup_timeout_s = 1"):
                await guarded(attached, asyncio.sleep(30, []))
        finally:
            await attached.aclose()

    with_fleet(tmp_path, scenario, num_servers=1)


def test_a_server_that_is_down_has_no_client(tmp_path):
    async def scenario(fleet, resynced, servers):
        fleet.client_now(0)
        fleet.balancer.set_up(0, False)
        with pytest.raises(ServerUnreachableError, match="is down"):
            fleet.client_now(0)

    with_fleet(tmp_path, scenario)


def test_a_server_that_was_given_up_ends_the_work(tmp_path):
    async def scenario(fleet, resynced, servers):
        os.kill(servers[0].pid, signal.SIGKILL)
        fleet.report(0)
        with pytest.raises(EngineError, match=r"max_restarts = 0"):
            await guarded(fleet, asyncio.sleep(30, []))

    with_fleet(tmp_path, scenario, max_restarts=0)


def test_a_resync_that_fails_ends_the_work(tmp_path):
    async def scenario(fleet, resynced, servers):
        async def failing(server):
            raise EngineError("the weights are gone")

        fleet._resync = failing
        fleet.policy_version = 4
        fleet.report(0)
        with pytest.raises(EngineError, match="the weights are gone"):
            await guarded(fleet, asyncio.sleep(30, []))

    with_fleet(tmp_path, scenario)


def test_a_fault_of_the_work_is_raised_at_once(tmp_path):
    async def scenario(fleet, resynced, servers):
        async def work():
            raise ValueError("bad request")

        with pytest.raises(ValueError, match="bad request"):
            await guarded(fleet, work())

    with_fleet(tmp_path, scenario, num_servers=1)


def test_an_attached_server_that_does_not_run_is_an_error():
    url = f"http://127.0.0.1:{free_port()}"

    async def scenario():
        fleet = Fleet([], SGLangConfig(urls=(url,), startup_timeout_s=0.5), never)
        with pytest.raises(EngineError, match=f"{url}.*is it running"):
            await fleet.clients()
        await fleet.aclose()

    asyncio.run(scenario())


@pytest.fixture(scope="module", params=["", "of the run"], ids=["open", "closed"])
def attached(request, tmp_path_factory):
    """The URL of a server of somebody else, and its API key; empty if it has none."""
    plan = tiny_plan(secret=request.param, num_servers=1)
    [server] = start_servers(plan, 0, tmp_path_factory.mktemp("attached"), lambda text: None)
    while server.url is None:
        time.sleep(0.05)
    yield server.url, plan.key_variables(server.url).get(KEY_VARIABLE, "")
    server.close()


@pytest.mark.parametrize("given", ["no file", "right", "wrong"])
def test_an_attached_server_needs_its_key_and_an_open_one_is_reported(
    attached, given, tmp_path, caplog, monkeypatch
):
    # Other tests of the process may have routed the package's warnings away from the root logger.
    monkeypatch.setattr(logging.getLogger("megatron_prime"), "propagate", True)
    url, key = attached
    path = tmp_path / "key"
    path.touch(0o600)
    path.write_text({"no file": "", "right": key or "anything", "wrong": "another"}[given])
    settings = SGLangConfig(urls=(url,), api_key_file=None if given == "no file" else path)

    async def scenario():
        fleet = Fleet([], settings, never)
        try:
            for _ in range(2):
                await fleet.clients()
        finally:
            await fleet.aclose()

    if key and given != "right":
        words = (
            "name a file"
            if given == "no file"
            else "the key in rollout.sglang.api_key_file is not this server's"
        )
        with pytest.raises(ServerRefusedError, match=f"{url}/model_info answered 401.*{words}") as caught:
            asyncio.run(scenario())
        assert key not in str(caught.value) and "another" not in str(caught.value)
    else:
        asyncio.run(scenario())
        # A server without keys ignores those that it is given.
        is_open = f"SGLang server 0 ({url}) answers calls without an API key"
        assert [is_open in record.getMessage() for record in caplog.records] == ([] if key else [True])


class _Attached(BaseHTTPRequestHandler):
    """A server that wants a key, or is something else."""

    def do_GET(self):
        if self.path != "/model_info":
            code, answer = 404, {}
        elif self.headers.get("Authorization") == "Bearer right":
            code, answer = 200, {"weight_version": "default"}
        else:
            code, answer = 401, {"error": "Unauthorized"}
        body = json.dumps(answer).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments): ...  # type: ignore[override]


ASKED = {
    # key, path behind the address -> the begin of a fault or of what is waited for, or None
    "right key": ("right", "", None, None),
    "wrong key": ("wrong", "", r"401.*: rollout\.sglang\.api_key_file names its key$", None),
    "no key": (None, "", r"401.*: rollout\.sglang\.api_key_file names its key$", None),
    "nobody there": ("right", "gone", None, "gives no answer now: is it running, .* A run waits for it"),
}


@pytest.mark.parametrize("case", ASKED)
def test_attached_servers_are_asked_once(case, tmp_path):
    key, place, fault, wait = ASKED[case]
    file = tmp_path / "key"
    file.write_text(f"{key}\n")
    file.chmod(0o600)
    with ThreadingHTTPServer(("127.0.0.1", 0), _Attached) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = free_port() if place else server.server_port
        settings = SGLangConfig(urls=(f"http://127.0.0.1:{port}",), api_key_file=file if key else None)
        faults, waits = asyncio.run(ask_attached(settings))
        server.shutdown()
    assert [bool(faults), bool(waits)] == [fault is not None, wait is not None]
    assert fault is None or re.search(fault, faults[0]), faults
    assert wait is None or re.search(wait, waits[0]), waits
