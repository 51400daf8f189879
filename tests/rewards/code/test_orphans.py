"""Runs in processes of its own, since adoption concerns all processes below one."""

import subprocess
import sys

import pytest

from tests.support import deadlines
from tests.support.sandbox_probe import needs_sandbox

COUNT = """
import os, sys, time
from pathlib import Path

def orphans():
    "Return the children of the first process of this test, this one, that nobody has waited for."
    states = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == os.getpid():
            states.append(fields[0])
    return states
"""
# A process that adopts orphans and never waits for one stands for the first process of such a container.
CONTAINER = (
    COUNT
    + """
import ctypes, subprocess
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
subprocess.run([sys.executable, "-c", sys.argv[1]], check=True)
time.sleep(0.2)
print("".join(orphans()))
"""
)
RUNS = """
from megatron_prime.config.tables.reward import CodeConfig
from megatron_prime.rewards.code.sandbox import Sandbox
box = Sandbox(CodeConfig(sandbox=%r, test_timeout_s=0.5))
for code in ("print(1)", "1 / 0", "import os; os._exit(0)", "while True: pass", %r):
    box.run(code, b"", 0.5)
"""
DAEMON = "import os, time\nif os.fork() == 0:\n    time.sleep(1000)\nos._exit(0)"


@pytest.mark.parametrize(
    "sandbox", [pytest.param("bubblewrap", marks=needs_sandbox), "none-i-accept-the-risk"]
)
def test_no_run_leaves_a_zombie_where_the_first_process_waits_for_none(sandbox):
    done = subprocess.run(
        [sys.executable, "-c", CONTAINER, RUNS % (sandbox, DAEMON)],
        capture_output=True,
        text=True,
        timeout=deadlines.seconds(60),
        check=True,
    )
    assert done.stdout.strip() == ""
