import json
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_prime.rewards.code import launcher
from megatron_prime.rewards.code.prelude import prelude_for
from tests.support import deadlines

SOURCE = Path(launcher.__file__).read_text(encoding="utf-8")


def launch(tmp_path, code, stdin="", call=None, **rlimits):
    (tmp_path / "code.py").write_text(code)
    settings = {
        "rlimits": rlimits,
        "uid": None,
        "call": call,
        "prelude": prelude_for(code),
        "code": str(tmp_path / "code.py"),
        "folder": str(tmp_path),
    }
    command = [sys.executable, "-I", "-c", SOURCE, json.dumps(settings)]
    return subprocess.run(
        command, input=stdin.encode(), capture_output=True, timeout=deadlines.seconds(60), check=False
    )


def test_it_reports_ready_and_runs_the_program(tmp_path):
    done = launch(tmp_path, "import os, sys\nprint(__name__, input(), os.getcwd(), sys.argv)", "hello\n")
    assert done.stdout.decode() == f"\x06__main__ hello {tmp_path} ['solution.py']\n"
    assert done.returncode == 0


def test_a_call_prints_only_the_result(tmp_path):
    done = launch(
        tmp_path, "print('noise')\ndef f(a, b):\n    print(a)\n    return (a, {b})", '["x", 2]', call="f"
    )
    assert done.stdout == b'\x06["x", [2]]'
    done = launch(tmp_path, "class Solution:\n    def f(self, a): return a + 1", "[1]", call="f")
    assert done.stdout == b"\x062"


def test_a_call_has_the_prelude_and_its_own_names_take_precedence(tmp_path):
    code = "class Solution:\n    def f(self, a: List[int]): return heappop(a) + gcd(4, 6) + len(defaultdict(int))"
    assert launch(tmp_path, code, "[[3, 5]]", call="f").stdout == b"\x065"
    own = "def gcd(a, b): return 100\ndef f(a): return gcd(a, a)"
    assert launch(tmp_path, own, "[1]", call="f").stdout == b"\x06100"


@pytest.mark.parametrize("code", ["def g(): pass", "1 / 0", "def f(a): return object()", "syntax error"])
def test_a_call_that_fails_prints_no_result(tmp_path, code):
    done = launch(tmp_path, code, "[1]", call="f")
    assert (done.stdout, done.returncode) == (b"\x06", 1)


def test_limits_are_set_before_the_program_starts(tmp_path):
    done = launch(
        tmp_path, "import resource\nprint(resource.getrlimit(resource.RLIMIT_NOFILE))", RLIMIT_NOFILE=20
    )
    assert done.stdout == b"\x06(20, 20)\n"


def test_without_its_limits_nothing_runs(tmp_path):
    done = launch(tmp_path, "print(1)", RLIMIT_UNKNOWN=1)
    assert done.stdout == b""
    assert done.returncode != 0
