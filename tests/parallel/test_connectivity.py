"""Tests that present ranks connect, and that an absent rank is named soon after the deadline."""

import socket
import time

from tests.parallel import connectivity_worker
from tests.support import deadlines
from tests.support.distributed_runner import run_distributed


def test_present_ranks_connect():
    reports = run_distributed(connectivity_worker.all_meet, 2)
    for hosts, mb_s in reports:
        assert hosts == (socket.gethostname(),) * 2
        assert mb_s > 0


def test_an_absent_rank_is_named():
    started = time.monotonic()
    report, _ = run_distributed(connectivity_worker.one_is_absent, 2, timeout_s=60)
    assert f"rank 0 on {socket.gethostname()} waited 2 s for ranks 1 of 2" in report
    assert time.monotonic() - started < deadlines.seconds(45)
