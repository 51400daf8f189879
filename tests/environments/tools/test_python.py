import asyncio

import pytest

from megatron_prime.environments.toolbox import ToolFailureError
from megatron_prime.environments.tools.python import Tool

RISK = {"sandbox": "none-i-accept-the-risk"}


@pytest.fixture(scope="module")
def tool():
    return Tool({"test_timeout_s": 1.0})


def run(tool, code, seconds=10.0):
    return asyncio.run(tool.call({"code": code}, seconds))


PROGRAMS = {
    "prints": ("print(6 * 7)\nprint('é')", "42\né"),
    "nothing": ("x = 1", "(The program printed nothing.)"),
    "exits": ("import sys; print(1); sys.exit(3)", "1\nError: exit code 3"),
    "stdin": ("import sys; print(repr(sys.stdin.read()))", "''"),
}


@pytest.mark.parametrize(("code", "printed"), PROGRAMS.values(), ids=PROGRAMS)
def test_programs(tool, code, printed):
    assert run(tool, code) == printed


FAILURES = {
    "raises": ("print(1)\n1 / 0", "1\nTraceback", "ZeroDivisionError: division by zero"),
    "no Python": ("for", "", "SyntaxError"),
    "hangs": ("while True: pass", "", "Error: it ran past 1 s"),
    "network": ("import socket; socket.create_connection(('127.0.0.1', 1))", "Traceback", "Error"),
    "memory": ("x = bytearray(2 ** 36)", "", "MemoryError"),
}


@pytest.mark.parametrize(("code", "begin", "end"), FAILURES.values(), ids=FAILURES)
def test_errors_are_text_for_the_policy(tool, code, begin, end):
    result = run(tool, code)
    assert result.startswith(begin) and end in result


def test_the_rest_of_the_turns_time_is_the_limit(tool):
    assert "ran past 0.3 s" in run(tool, "while True: pass", seconds=0.3)


def test_a_sandbox_that_does_not_start_is_no_result(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="bwrap is not installed"):
        monkeypatch.setenv("PATH", str(tmp_path))
        Tool({})
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    with pytest.raises(ToolFailureError, match="does not start"):
        run(Tool(RISK | {"python": str(broken)}), "print(1)")
