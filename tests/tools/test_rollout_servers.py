"""Servers on nodes of their own: addresses, command line, and a restart of one that dies on the same port."""

import os
import signal
import sys
import threading
from dataclasses import replace

import pytest

from megatron_prime.config.loading import load_config
from megatron_prime.engines.sglang import server as sglang_server
from megatron_prime.engines.sglang.nodes import start_servers
from megatron_prime.engines.sglang.server import answers
from megatron_prime.workers.ports import free_port
from tests.engines.sglang.tiny_plan import tiny_plan
from tests.support import deadlines
from tests.support.toy_runs import ROOT
from tools import rollout_servers

OVERLAP = str(ROOT / "examples" / "prime_70b_overlap.toml")


@pytest.fixture
def key_file(tmp_path):
    path = tmp_path / "server.key"
    path.touch(0o600)
    path.write_text("a-secret-key\n")
    return path


def test_the_addresses_are_an_override_for_train(capsys):
    assert rollout_servers.main([OVERLAP, "rollout.sglang.num_servers=2", "--urls", "node7", "node8"]) == 0
    config = load_config(ROOT / "examples" / "prime_70b_overlap.toml", [capsys.readouterr().out.strip()])
    assert config.rollout.sglang.urls == tuple(
        f"http://{node}:{port}" for node in ("node7", "node8") for port in (30000, 30001)
    )


def test_servers_are_started_as_the_run_would_start_them(tmp_path, key_file):
    overrides = [f"run_dir={tmp_path}", f"rollout.sglang.python={sys.executable}"]
    config = load_config(ROOT / "examples" / "prime_70b_overlap.toml", overrides)
    plan = rollout_servers.launch_plan(config, "node7", 31000, key_file)
    command = " ".join(plan.command(0, 31000))
    for part in (
        "receiver.serve",
        "--host node7",
        "--port 31000",
        "--tp-size 8",
        "--dtype bfloat16",
        "dummy",
    ):
        assert part in command
    assert "a-secret-key" not in command + str(plan)
    assert list(plan.key_variables("http://node7:31000").values()) == ["a-secret-key"]
    assert "--enable-memory-saver" not in command
    assert plan.settings.weight_transport == "shards"
    assert (tmp_path / "sglang" / "node7" / "loader").is_dir()


def test_mistakes_are_explained(tmp_path, key_file, capsys):
    place = ["--host", "node7", "--key-file", str(key_file)]
    folder = [OVERLAP, f"run_dir={tmp_path}"]
    cases = {
        "--host and --key-file are needed": folder,
        "rollout.sglang.pyton": [*folder, "rollout.sglang.pyton=x", *place],
        "rollout.sglang.python = nowhere does not exist": [*folder, "rollout.sglang.python=nowhere", *place],
    }
    for message, arguments in cases.items():
        assert rollout_servers.main(arguments) == 2
        assert message in capsys.readouterr().err
    key_file.chmod(0o644)
    assert rollout_servers.main([*folder, *place]) == 2
    assert "is open to other users" in capsys.readouterr().err


@pytest.fixture
def handlers():
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def start(tmp_path, monkeypatch, mode="", **settings):
    monkeypatch.setattr(sglang_server, "GRACE_S", 0.5)
    plan = replace(tiny_plan(mode, **settings), first_port=free_port())
    return start_servers(plan, 0, tmp_path / "logs", lambda text: None)


def test_a_server_that_dies_is_back_at_the_same_address_until_it_is_asked_to_end(
    tmp_path, monkeypatch, handlers
):
    servers = start(tmp_path, monkeypatch)

    def kill_and_ask():
        url = deadlines.wait_until(lambda: servers[0].url, 60)
        os.kill(servers[0].pid, signal.SIGKILL)
        deadlines.wait_until(lambda: servers[0].num_starts == 2, 60)
        seen.append((url, servers[0].url, answers(url)))
        os.kill(os.getpid(), signal.SIGTERM)

    seen = []
    thread = threading.Thread(target=kill_and_ask)
    thread.start()
    assert rollout_servers.run(servers) == 0
    thread.join()
    ((before, after, is_up),) = seen
    assert before == after and is_up
    assert servers[0].url is None and not answers(before)


def test_a_server_that_cannot_run_ends_the_program_with_its_log(tmp_path, monkeypatch, handlers, capsys):
    servers = start(tmp_path, monkeypatch, mode="dies", max_restarts=0)
    assert rollout_servers.run(servers) == 1
    assert "ended 1 times in a row" in capsys.readouterr().out
