"""Servers answer nobody without their key: the gate by itself, and every call of a real server."""

import asyncio
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from megatron_prime.engines.sglang import client
from megatron_prime.engines.sglang.engine import SGLangEngine
from megatron_prime.engines.sglang.loader.serve import KEY_VARIABLE, KeyGate
from tests.support import deadlines
from tests.support.forked_commands import FRESH_SERVERS
from tests.support.sglang_live import sglang_settings


def answer_of(scopes):
    """Return the messages of a gate with the key "k1" to requests, one list each; an empty list is an admission."""
    answers = []

    async def app(scope, receive, send):
        await send("admitted")

    async def run():
        gate = KeyGate(app, key="k1")
        for scope in scopes:
            sent = []

            async def send(message, sent=sent):
                sent.append(message)

            await gate(scope, None, send)
            answers.append(sent)

    asyncio.run(run())
    return answers


def request(*headers, path="/generate", kind="http"):
    return {"type": kind, "path": path, "headers": [(b"authorization", value) for value in headers]}


HEADERS = {
    "none": [],
    "empty": [b""],
    "the key alone": [b"k1"],
    "no key": [b"Bearer "],
    "a part": [b"Bearer k"],
    "more": [b"Bearer k11"],
    "another": [b"Bearer k2"],
    "upper case": [b"Bearer K1"],
    "another scheme": [b"Basic k1"],
    "bytes": [b"Bearer \xff"],
    "right and wrong": [b"Bearer k1", b"Bearer k2"],
    "twice": [b"Bearer k1", b"Bearer k1"],
}


@pytest.mark.parametrize("case", HEADERS)
@pytest.mark.parametrize("path", ["/generate", "/health", "/metrics", "/", "/docs", "//generate"])
def test_every_path_needs_the_key(case, path):
    [[start, body]] = answer_of([request(*HEADERS[case], path=path)])
    assert start["status"] == 401 and body["body"] == b'{"error": "Unauthorized"}'


def test_the_key_opens_and_only_requests_are_checked():
    admitted = [request(b"Bearer k1"), request(b"Bearer k1", kind="websocket"), {"type": "lifespan"}]
    assert answer_of(admitted) == [["admitted"]] * 3
    [[closed]] = answer_of([request(b"Bearer k2", kind="websocket")])
    assert closed == {"type": "websocket.close", "code": 1008}


USED = sorted(set(re.findall(r'"(/[a-z_]+)"', inspect.getsource(client))))
OTHERS = (
    *("/", "/docs", "/openapi.json", "/metrics", "/health_generate", "/server_info", "/get_server_info"),
    *("/update_weight_version", "/init_weights_update_group", "/update_weights_from_distributed"),
    *("/flush_cache", "/abort_request", "/freeze_gc", "/v1/completions", "/v1/models", "/nowhere"),
)


def test_a_real_server_refuses_every_call_without_its_key(live_engine):
    assert "/generate" in USED and "/update_weights_from_tensor" in USED and len(USED) >= 12
    url, other = (server.url for server in live_engine.servers)
    wrong = {
        "none": {},
        "random": {"Authorization": "Bearer 0123456789abcdef"},
        "of the other server": {"Authorization": f"Bearer {live_engine.fleet.api_key(1, other)}"},
        "empty": {"Authorization": "Bearer"},
    }
    before = live_engine.driver.run(live_engine.fleet.weight_versions)
    with httpx.Client(base_url=url, trust_env=False, timeout=deadlines.seconds(30)) as http:
        admitted = [
            (method, path, which, reply.status_code)
            for path in (*USED, *OTHERS)
            for method in ("GET", "POST", "OPTIONS")
            for which, headers in wrong.items()
            if (reply := http.request(method, path, headers=headers)).status_code not in (401, 403)
        ]
        assert not admitted
        key = live_engine.fleet.api_key(0, url)
        right = {"Authorization": f"Bearer {key}"}
        assert http.get("/model_info", headers=right).status_code == 200
        assert http.get("/health", headers=right).status_code == 200
    assert live_engine.driver.run(live_engine.fleet.weight_versions) == before == [1, 1]


@pytest.fixture
def executed_engine(live_models, tmp_path, monkeypatch) -> Iterator[SGLangEngine]:
    """Return an engine with a server that is no fork, whose environment the system shows."""
    monkeypatch.setenv(FRESH_SERVERS, "1")
    engine = SGLangEngine(
        live_models[0].path, device="cpu", dtype="fp32", seed=0, settings=sglang_settings(), run_dir=tmp_path
    )
    engine.load_from_hf(live_models[0].path, policy_version=1)
    yield engine
    engine.close()


@pytest.mark.slow
def test_the_key_of_a_real_server_is_in_its_own_environment_alone(live_engine, executed_engine):
    keys = [
        engine.fleet.api_key(server.index, server.url)
        for engine in (executed_engine, live_engine)
        for server in engine.servers
    ]
    assert len(set(keys)) == 3 and all(len(key) == 64 for key in keys)
    secrets = [*keys, executed_engine.secret, live_engine.secret]
    main = psutil.Process(executed_engine.servers[0].pid)
    assert main.environ()[KEY_VARIABLE] == keys[0]
    children = main.children(recursive=True)
    assert len(children) >= 2
    guardian = main.parent()
    assert guardian is not None
    for process in (main, guardian, *children):
        assert not any(secret in " ".join(process.cmdline()) for secret in secrets)
    for process in children:
        assert not any(secret in str(process.environ()) for secret in secrets)
    files = [path for path in Path(executed_engine.folder).rglob("*") if path.is_file()]
    assert any(path.suffix == ".log" and path.stat().st_size > 1000 for path in files)
    for path in files:
        assert not any(secret.encode() in path.read_bytes() for secret in secrets), path
