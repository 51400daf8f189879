"""Calls that wait are sent together, and only the one in work pays for a worker that dies."""

import asyncio
import threading

import pytest

from megatron_prime.config.tables.environment import EnvironmentConfig
from megatron_prime.environments.pool import EnvironmentPool
from megatron_prime.environments.slot import MAX_CALLS
from megatron_prime.observability.activity import ENVIRONMENT, workers
from megatron_prime.rollout.episode import EpisodeError
from megatron_prime.workers.process import WorkerProcess
from tests.support import deadlines

ROW = {"messages": [{"role": "user", "content": "q"}], "answer": "7"}


@pytest.fixture
def sent(monkeypatch):
    """Numbers of calls of the lists that were sent."""
    lengths = []
    ask_list = WorkerProcess.ask_list

    def counted(process, requests):
        lengths.append(len(requests))
        return ask_list(process, requests)

    monkeypatch.setattr(WorkerProcess, "ask_list", counted)
    return lengths


def play_together(turns, timeout_s=30.0, num_repeated=1):
    """Play one episode for each list of texts at the same time; return its last replies, and the counts of the pool."""

    async def one(pool, texts):
        episode = pool.episode()
        try:
            await episode.reset(ROW)
            for turn, text in enumerate(texts):
                response = {"text": text, "token_ids": [1], "finish_reason": "stop", "turn": turn}
                step = await episode.step(response)
            return step["messages"][0]["content"]
        except EpisodeError as error:
            return str(error)
        finally:
            episode.close()

    async def everything(pool):
        return [await asyncio.gather(*(one(pool, texts) for texts in turns)) for _ in range(num_repeated)]

    config = EnvironmentConfig(
        name="tests.environments.scripted:Scripted", num_workers=1, timeout_s=timeout_s
    )
    with EnvironmentPool(config) as pool:
        results = asyncio.run(asyncio.wait_for(everything(pool), deadlines.seconds(60)))
        return results[-1], pool.counts


def test_calls_that_wait_are_sent_together(sent):
    replies, counts = play_together([[f"{n}", "b"] for n in range(40)], num_repeated=5)
    assert replies == [f"2: {n} b" for n in range(40)]
    assert counts["calls"] == 5 * 40 * 3 and counts["restarts"] == 0
    assert 20 < max(sent) <= MAX_CALLS
    assert len(sent) < counts["calls"] / 5
    (activity,) = [each for each in workers(ENVIRONMENT) if each.name.endswith(":Scripted")]
    assert (activity.pending, activity.running) == (0, 0)


def test_slow_calls_are_sent_alone(sent):
    replies, _ = play_together([["sleep 0.03"]] * 8)
    assert replies == ["slept"] * 8
    # None waits until the worker has answered many others.
    assert max(sent[-4:]) <= 2


@pytest.mark.parametrize(
    ("text", "kind", "restarts"), [("exit 3", "died", 2), ("hang", "timeout", 1), ("forge", "died", 2)]
)
def test_the_call_in_work_pays_alone(text, kind, restarts):
    # Enough turns before it that lists are long.
    turns = [["a"] * 6 + [text if n == 7 else "b"] for n in range(16)]
    replies, counts = play_together(turns, timeout_s=0.5)
    assert "Scripted.step" in replies.pop(7)
    assert replies == ["7: a a a a a a b"] * 15
    failed = {name: count for name, count in counts.items() if name.startswith("failed") and count}
    assert failed == {f"failed_{kind}": 1} and counts["restarts"] == restarts


def test_an_event_loop_that_has_ended_harms_no_other():
    config = EnvironmentConfig(name="tests.environments.scripted:Scripted", num_workers=1)

    async def abandon(pool):
        episode = pool.episode()
        await episode.reset(ROW)
        response = {"text": "sleep 0.1", "token_ids": [1], "finish_reason": "stop", "turn": 0}
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(episode.step(response), 0.01)

    async def reset(pool):
        return await pool.episode().reset(ROW)

    with EnvironmentPool(config) as pool:
        thread = threading.Thread(target=lambda: asyncio.run(abandon(pool)))
        thread.start()
        thread.join()
        assert asyncio.run(reset(pool))[-1]["content"] == "hello"
