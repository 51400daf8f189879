"""Tests that a tied child ends with its parent, even when the parent is killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.support import deadlines

CHILD = """
import time
from megatron_prime.parallel.lifeline import die_with_parent
die_with_parent({parent})
time.sleep(60)
"""
PARENT = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", sys.argv[1].format(parent=os.getpid())])
print(child.pid, flush=True)
time.sleep(60)
"""


def test_a_child_ends_when_its_parent_is_killed():
    parent = subprocess.Popen([sys.executable, "-c", PARENT, CHILD], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    time.sleep(1.0)
    assert _is_alive(child)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + deadlines.seconds(60)
    while _is_alive(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _is_alive(child)


def test_a_child_whose_parent_is_gone_already_exits():
    done = subprocess.run(
        [sys.executable, "-c", CHILD.format(parent=os.getpid() + 1_000_000)], capture_output=True, text=True
    )
    assert done.returncode != 0 and "is gone" in done.stderr


FORKER = """
import multiprocessing, os, time
from megatron_prime.parallel.lifeline import tie_forked_children
tie_forked_children()
context = multiprocessing.get_context("fork")
def below():
    print(os.getpid(), flush=True)
    time.sleep(60)
def child():
    print(os.getpid(), flush=True)
    context.Process(target=below).start()
    time.sleep(60)
context.Process(target=child).start()
time.sleep(60)
"""


def test_forks_and_their_forks_end_when_the_process_is_killed():
    parent = subprocess.Popen([sys.executable, "-c", FORKER], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    below = [int(parent.stdout.readline()) for _ in range(2)]
    assert all(_is_alive(pid) for pid in below)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + deadlines.seconds(60)
    while any(_is_alive(pid) for pid in below) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(_is_alive(pid) for pid in below)


def _is_alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False
