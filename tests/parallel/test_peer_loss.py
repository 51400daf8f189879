"""Tests that errors of real process groups that lost a peer are recognized, and that similar ones are not."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch.distributed as dist

from megatron_prime.parallel.peer_loss import is_peer_loss
from megatron_prime.workers.ports import free_port
from tests.support import deadlines
from tests.support.forked_commands import FORKED

SURVIVOR = """
import datetime, os, signal, sys, time, torch, torch.distributed as dist
from megatron_prime.parallel.peer_loss import EXIT_CODE, is_peer_loss
rank, how = int(os.environ["RANK"]), sys.argv[1]
dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=60))
dist.all_reduce(torch.ones(3))
group = dist.new_group([0, 1], timeout=datetime.timedelta(seconds=6))
dist.all_reduce(torch.ones(3), group=group)
if rank == 1:
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)
try:
    dist.all_reduce(torch.ones(3), group=group)
except RuntimeError as error:
    try:
        raise RuntimeError("the update failed") from error
    except RuntimeError as outer:
        os._exit(EXIT_CODE if is_peer_loss(error) and is_peer_loss(outer) else 1)
"""


@pytest.mark.parametrize("how", ["killed", "silent"])
def test_a_survivor_recognizes_the_loss_of_its_peer(how):
    shared = os.environ | {
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    survivor, lost = (
        subprocess.Popen([sys.executable, *FORKED, "-c", SURVIVOR, how], env=shared | {"RANK": str(rank)})
        for rank in range(2)
    )
    try:
        assert survivor.wait(60) == 69
        if how == "killed":
            assert lost.wait(60) == -signal.SIGKILL
    finally:
        for process in (survivor, lost):
            process.kill()
            process.wait()


def test_the_loss_of_the_store_is_a_peer_loss():
    started = time.monotonic()
    with pytest.raises(dist.DistNetworkError) as caught:
        dist.TCPStore("127.0.0.1", free_port(), None, False, dist.default_pg_timeout / 1800)
    assert is_peer_loss(caught.value) and time.monotonic() - started < deadlines.seconds(30)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: device-side assert triggered"),
        RuntimeError("Connection refused"),
        ValueError("gloo/transport/ is no place for a model"),
        OSError(28, "No space left on device"),
        dist.DistBackendError("NCCL error in: a.cpp:1, invalid usage (run with NCCL_DEBUG=WARN for details)"),
    ],
)
def test_an_error_of_the_rank_itself_is_no_peer_loss(error):
    assert not is_peer_loss(error)


def test_a_broken_connection_is_a_peer_loss():
    left, right = socket.socketpair()
    right.close()
    with pytest.raises(BrokenPipeError) as caught:
        left.send(b"x")
    left.close()
    assert is_peer_loss(caught.value)


def test_nccl_errors_are_recognized_by_their_messages():
    text = "NCCL error in: a.cpp:1, remote process exited or there was a network error, NCCL version 2.29"
    assert is_peer_loss(dist.DistBackendError(text))
