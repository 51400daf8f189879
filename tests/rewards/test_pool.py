import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
import torch

from megatron_prime.rewards import VerificationStatus, VerifierPool, verifier
from tests.rewards.rewards_doubles import Scripted
from tests.support import deadlines
from tests.support.samples import samples

OK, TIMEOUT, ERROR = VerificationStatus.OK, VerificationStatus.TIMEOUT, VerificationStatus.ERROR


WORKER_MODULE = "tests.rewards.scripted_worker"


@pytest.fixture(autouse=True)
def _scripted_is_registered(monkeypatch):
    """Make the scripted verifier known to the pool in this process, for one test only."""
    monkeypatch.setitem(verifier._FACTORIES, "scripted", Scripted)


def scripted(num_workers=1, timeout_s=20.0):
    return VerifierPool("scripted", num_workers, timeout_s, module=WORKER_MODULE)


def is_gone(pid):
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def eventually(condition, seconds=60.0):
    deadlines.wait_until(condition, seconds)


def test_rewards_come_in_order_from_several_workers(tmp_path):
    with scripted(num_workers=2) as pool:
        assert len(set(pool.worker_pids)) == 2
        tasks = [(f"reward {n / 100}", "") for n in range(100)]
        assert [outcome.reward for outcome in pool.verify_all(samples(tasks))] == [
            n / 100 for n in range(100)
        ]
        assert pool.verify_all([]) == []
        # Both workers must run at the same time: each holds its task until the other has had time to take one.
        log = str(tmp_path / "pids")
        pool.verify_all(samples([("sleep 0.3", ""), ("sleep 0.3", ""), ("pid", log), ("pid", log)]))
        assert pool.counts == {"ok": 104, "timeout": 0, "error": 0, "restarts": 0}


def test_threads_share_a_pool_and_a_slow_response_holds_up_its_own_caller_alone():
    with scripted(num_workers=2) as pool, ThreadPoolExecutor(8) as threads:
        slow = threads.submit(pool.verify_all, samples([("sleep 2", ""), ("reward 1", "")]))
        batches = [
            threads.submit(pool.verify_all, samples([(f"reward {n / 100}", ""), ("reward 0", "")]))
            for n in range(50)
        ]
        rewards = [[outcome.reward for outcome in batch.result()] for batch in batches]
        assert rewards == [[n / 100, 0.0] for n in range(50)]
        assert not slow.done()
        assert [outcome.reward for outcome in slow.result()][1] == 1.0
        assert pool.counts == {"ok": 102, "timeout": 0, "error": 0, "restarts": 0}


def test_an_in_process_verifier_starts_no_processes():
    with VerifierPool("exact_match", 4, 1.0) as pool:
        assert pool.worker_pids == ()
        assert [outcome.reward for outcome in pool.verify_all(samples([("1 2", "2"), ("1 2", "1")]))] == [
            1.0,
            0.0,
        ]
        (blank,) = pool.verify_all(samples([("1", "")]))
        assert blank.status is ERROR
        assert pool.counts == {"ok": 2, "timeout": 0, "error": 1, "restarts": 0}


def test_math_runs_in_workers():
    with VerifierPool("math", 1, 30.0) as pool:
        outcomes = pool.verify_all(
            samples([(r"\boxed{0.5}", "1/2"), (r"\boxed{5}", "6"), ("none", "6"), ("x", " ")])
        )
    assert [outcome.status for outcome in outcomes] == [OK, OK, OK, ERROR]
    assert [outcome.reward for outcome in outcomes[:3]] == [1.0, 0.0, 0.0]


@pytest.mark.parametrize("command", ["hang", "stubborn"])
def test_a_verification_past_its_deadline_is_killed_without_affecting_others(command):
    with scripted(timeout_s=1.0) as pool:
        first_pid = pool.worker_pids[0]
        start = time.monotonic()
        outcomes = pool.verify_all(samples([("reward 1", ""), (command, ""), ("reward 0.5", "")]))
        assert [outcome.status for outcome in outcomes] == [OK, TIMEOUT, OK]
        assert math.isnan(outcomes[1].reward)
        assert (outcomes[0].reward, outcomes[2].reward) == (1.0, 0.5)
        assert time.monotonic() - start < deadlines.seconds(10)
        assert is_gone(first_pid)
        assert pool.counts == {"ok": 2, "timeout": 1, "error": 0, "restarts": 1}


def test_killing_a_verification_kills_its_subprocesses(tmp_path):
    with scripted(timeout_s=1.0) as pool:
        (outcome,) = pool.verify_all(samples([("child", str(tmp_path / "pid"))]))
    assert outcome.status is TIMEOUT
    eventually(lambda: is_gone(int((tmp_path / "pid").read_text())))


def test_a_response_whose_worker_dies_is_retried_once(tmp_path):
    with scripted() as pool:
        (outcome,) = pool.verify_all(samples([("crash_once", str(tmp_path / "marker"))]))
        assert (outcome.reward, outcome.status) == (1.0, OK)
        assert pool.counts["restarts"] == 1


def test_a_verification_that_always_kills_its_worker_is_a_counted_error():
    with scripted() as pool:
        outcomes = pool.verify_all(samples([("crash", ""), ("reward 1", "")]))
        assert [outcome.status for outcome in outcomes] == [ERROR, OK]
        assert math.isnan(outcomes[0].reward)
        assert "exit code 3" in outcomes[0].detail
        assert pool.counts == {"ok": 1, "timeout": 0, "error": 1, "restarts": 2}


def test_a_worker_killed_between_batches_is_replaced():
    with scripted() as pool:
        os.kill(pool.worker_pids[0], signal.SIGKILL)
        assert [outcome.reward for outcome in pool.verify_all(samples([("reward 1", "")]))] == [1.0]


def test_exceptions_output_and_memory_use_are_confined_to_the_worker():
    with scripted() as pool:
        outcomes = pool.verify_all(
            samples(
                [
                    ("reward x", ""),
                    ("reward 7", ""),
                    ("print", ""),
                    ("memory", ""),
                    ("reward 1", ""),
                    ("torch", ""),
                ]
            )
        )
        assert [outcome.status for outcome in outcomes] == [ERROR, ERROR, OK, ERROR, OK, OK]
        assert outcomes[2].reward == 1.0
        assert "MemoryError" in outcomes[3].detail
        assert outcomes[5].reward == 0.0, "a worker imported torch"
        assert pool.counts["restarts"] == 0


HOSTILE = {
    # command -> its reward, or None for an error; the verdicts of other responses are always their own
    "forge frame": None,
    "forge token": None,
    "forge byte": None,
    "forge done": None,
    "forge all": None,
    "steal": None,
    "look_around": 0.0,
    "fork_and_return": 0.5,
    "exit": None,
    "cancel": None,
    "close_all": None,
    "detail": None,
}


def test_a_hostile_verifier_forges_no_verdict_and_moves_none():
    tasks = [
        (text, "") for command in HOSTILE for text in ("reward 0.75", command, "reward 0.125", "reward 0")
    ]
    with scripted() as pool:
        outcomes = pool.verify_all(samples(tasks))
    rewards = [None if math.isnan(outcome.reward) else outcome.reward for outcome in outcomes]
    assert dict(zip(HOSTILE, rewards[1::4], strict=True)) == HOSTILE
    assert rewards[0::4] == [0.75] * len(HOSTILE) and rewards[2::4] == [0.125] * len(HOSTILE)
    assert rewards[3::4] == [0.0] * len(HOSTILE)
    assert "a descriptor that it did not open" in outcomes[1].detail


@pytest.mark.parametrize("way", ["thread", "fork"])
def test_what_is_written_after_a_verdict_is_not_the_next(way):
    with scripted() as pool:
        first = pool.verify_all(samples([(f"forge_later {way}", "0.2")]))
        time.sleep(0.4)  # idle when it is written
        second = pool.verify_all(samples([("reward 0", ""), (f"forge_later {way}", "0.05")]))
        third = pool.verify_all(samples([("sleep 0.3", ""), ("reward 0", "")]))  # busy when it is written
    assert [outcome.reward for outcome in (*first, *second, *third)] == [0.25, 0.0, 0.25, 1.0, 0.0]


def test_texts_of_any_size_and_characters_are_transmitted():
    text = "é\ud800\0\n" * 100_000
    with scripted() as pool:
        outcomes = pool.verify_all(samples([("length " + text, str(len(text)))]))
    assert [outcome.reward for outcome in outcomes] == [1.0]


def test_closing_ends_a_batch_after_the_responses_in_progress():
    pool = scripted()
    timer = threading.Timer(0.3, pool.close)
    timer.start()
    with pytest.raises(RuntimeError, match="closed during a batch"):
        pool.verify_all(samples([("sleep 0.2", "")] * 10_000))
    timer.join()
    assert pool.worker_pids == ()


def test_closing_ends_the_workers_and_can_be_repeated():
    pool = scripted(num_workers=2)
    pids = pool.worker_pids
    pool.close()
    pool.close()
    assert all(is_gone(pid) for pid in pids)
    with pytest.raises(RuntimeError, match="closed"):
        pool.verify_all(samples([("reward 1", "")]))


def test_workers_do_not_outlive_a_pool_that_was_killed(tmp_path):
    program = (
        "import tests.rewards.scripted_worker, json, sys\n"
        "from megatron_prime.rewards import VerifierPool\n"
        "pool = VerifierPool('scripted', 1, 60.0, module='tests.rewards.scripted_worker')\n"
        "print(json.dumps(pool.worker_pids), flush=True)\n"
        "sys.stdin.read()\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    (worker,) = json.loads(parent.stdout.readline())
    assert not is_gone(worker)
    parent.kill()
    parent.communicate()
    eventually(lambda: is_gone(worker))


def test_it_is_safe_beside_a_parent_with_busy_torch_threads():
    torch.randn(256, 256) @ torch.randn(256, 256)
    with scripted() as pool:
        assert pool.verify_all(samples([("reward 1", "")]))[0].reward == 1.0


@pytest.mark.parametrize(("num_workers", "timeout_s"), [(0, 1.0), (1, 0.0)])
def test_numbers_of_workers_and_seconds_must_be_positive(num_workers, timeout_s):
    with pytest.raises(ValueError, match="must both be positive"):
        VerifierPool("math", num_workers, timeout_s)


def test_an_unknown_verifier_is_rejected_before_any_process_starts():
    with pytest.raises(ValueError, match="unknown verifier"):
        VerifierPool("none", 1, 1.0)


def test_a_worker_that_cannot_start_is_an_error_with_the_reason():
    reason = (
        r"'scripted' does not start: ModuleNotFoundError: No module named 'no_such_module' \(.*, line \d+\)"
    )
    with pytest.raises(RuntimeError, match=reason):
        VerifierPool("scripted", 1, 1.0, module="no_such_module")
