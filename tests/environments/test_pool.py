import asyncio
import os
import re
import signal
import sys
import threading
import time

import psutil
import pytest

from megatron_prime.config.tables.environment import EnvironmentConfig
from megatron_prime.environments.pool import EnvironmentPool
from megatron_prime.observability.activity import ENVIRONMENT, workers
from megatron_prime.rollout.episode import EpisodeError
from tests.environments.scripted import RETURNED
from tests.support import deadlines

ROW = {"messages": [{"role": "user", "content": "q"}], "answer": "7"}


def config(name="Scripted", num_workers=1, timeout_s=30.0, **settings):
    path = f"tests.environments.scripted:{name}" if name[0].isupper() else name
    return EnvironmentConfig(name=path, num_workers=num_workers, timeout_s=timeout_s, settings=settings)


@pytest.fixture(scope="module")
def shared():
    with EnvironmentPool(config()) as pool:
        yield pool


def response(text, turn=0):
    return {"text": text, "token_ids": [1, 2], "finish_reason": "stop", "turn": turn}


async def play(pool, *texts, row=ROW):
    """Return the content of the replies of an episode, or the error that ends it."""
    episode = pool.episode()
    replies = []
    try:
        replies.append((await episode.reset(row))[-1]["content"])
        for turn, text in enumerate(texts):
            step = await episode.step(response(text, turn))
            replies.append(step["messages"][0]["content"] if step["messages"] else step["outcome"])
    except EpisodeError as error:
        replies.append(str(error))
    finally:
        episode.close()
        episode.close()
    return replies


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, deadlines.seconds(60)))


def together(*coroutines):
    async def gathered():
        return await asyncio.gather(*coroutines)

    return run(gathered())


def is_gone(pid):
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_episodes_keep_their_state_beside_others(shared):
    results = together(*(play(shared, *(f"{text}{n}" for text in "ab"), "done 0.25") for n in range(20)))
    assert results == [["hello", f"1: a{n}", f"2: a{n} b{n}", 0.25] for n in range(20)]
    assert shared.counts["failed_error"] == 0


def test_episodes_are_spread_over_workers_and_any_loop_may_use_them():
    with EnvironmentPool(config(num_workers=2)) as pool:
        results = together(*(play(pool, "pid") for _ in range(4)))
        assert {int(pid) for _, pid in results} == set(pool.worker_pids)
        found = []
        thread = threading.Thread(target=lambda: found.append(run(play(pool, "a"))))
        thread.start()
        assert run(play(pool, "b")) == ["hello", "1: b"]
        thread.join()
        assert found == [["hello", "1: a"]]
        assert pool.counts["episodes"] == 6 and pool.counts["call_s"] > 0
    (activity,) = [each for each in workers(ENVIRONMENT) if each.name.endswith(":Scripted")]
    assert (activity.pending, activity.running) == (0, 0)


PLACE = r"Scripted\.step \(.*scripted\.py, line \d+\)"
ONE_EPISODE = {
    "raise": ("error", r"KeyError: 'no such room' \(.*scripted\.py, line \d+\)"),
    "system_exit": ("error", r"SystemExit: 1 \(.*scripted\.py, line \d+\)"),
    "memory": ("error", "MemoryError"),
    "exit 3": ("died", rf"ended with exit code 3, in {PLACE}"),
    "forge": ("died", "a descriptor that it did not open"),
    "long": ("invalid", f"{PLACE}: its messages have 100,000,000 characters"),
} | {f"return {name}": ("invalid", PLACE) for name in RETURNED}


@pytest.mark.parametrize(
    ("text", "kind", "message"), [(k, *v) for k, v in ONE_EPISODE.items()], ids=ONE_EPISODE
)
def test_a_failure_costs_one_episode(shared, text, kind, message):
    before = shared.counts
    (_, error), other = together(play(shared, text), play(shared, "a", "b"))
    assert re.search(message, error), error
    assert "\n" not in error and len(error) < 1000
    assert other == ["hello", "1: a", "2: a b"]
    after = shared.counts
    assert {name for name in after if name.startswith("failed") and after[name] > before[name]} == {
        f"failed_{kind}"
    }


HARMLESS = {"print": "''", "fork": "parent", "torch": "False"}


@pytest.mark.parametrize(("text", "reply"), HARMLESS.items())
def test_what_costs_nothing(shared, text, reply):
    assert together(play(shared, text), play(shared, "a")) == [["hello", reply], ["hello", "1: a"]]


@pytest.mark.parametrize("when", ["reset", "step"])
def test_a_hang_is_killed_and_the_other_episodes_are_repeated(when, tmp_path):
    async def innocent(pool, has_hung):
        episode = pool.episode()
        await episode.reset(ROW)
        await episode.step(response("a"))
        (pid,) = pool.worker_pids
        await has_hung()
        assert is_gone(pid)
        return (await episode.step(response("b", 1)))["messages"][0]["content"]

    with EnvironmentPool(config(timeout_s=1.0)) as pool:
        row = ROW | ({"answer": "hang"} if when == "reset" else {})
        texts = ["hang"] if when == "step" else []
        begin = time.monotonic()

        async def hang():
            *_, error = await play(pool, f"child {tmp_path / 'pid'}", *texts, row=row)
            assert f"Scripted.{when}" in error and "ran past 1 s" in error

        assert run(innocent(pool, hang)) == "2: a b"
        assert time.monotonic() - begin < deadlines.seconds(10)
        assert (pool.counts["failed_timeout"], pool.counts["restarts"]) == (1, 1)
        if when == "step":
            assert is_gone(int((tmp_path / "pid").read_text()))


def test_an_episode_whose_process_dies_once_goes_on(shared, tmp_path):
    assert run(play(shared, "a", f"crash_once {tmp_path / 'mark'}", "b"))[2:] == [
        "survived",
        f"3: a crash_once {tmp_path / 'mark'} b",
    ]


def test_an_episode_that_repeats_otherwise_fails(shared):
    async def killed_between(*texts, row=ROW):
        episode = shared.episode()
        await episode.reset(row)
        for turn, text in enumerate(texts):
            await episode.step(response(text, turn))
        os.kill(shared.worker_pids[0], signal.SIGKILL)
        return await episode.step(response("b", len(texts)))

    assert run(killed_between("a"))["messages"][0]["content"] == "2: a b"
    with pytest.raises(
        EpisodeError, match=r"reply to turn 1 differs .*Scripted\.step .* is not deterministic"
    ):
        run(killed_between("a", "pid"))
    with pytest.raises(EpisodeError, match=r"repeated reset differs .*Scripted\.reset"):
        run(killed_between("a", row=ROW | {"answer": "random"}))


def test_closing_an_episode_fails_the_call_that_waits(shared):
    async def closed_during_a_step():
        episode = shared.episode()
        await episode.reset(ROW)
        running = asyncio.ensure_future(episode.step(response("sleep 0.3")))
        other = shared.episode()
        queued = asyncio.ensure_future(other.reset(ROW))
        await asyncio.sleep(0.05)
        for each in (episode, other):
            each.close()
        results = await asyncio.gather(running, queued, return_exceptions=True)
        with pytest.raises(EpisodeError, match="closed"):
            await episode.step(response("a"))
        return [str(result) for result in results]

    begin = time.monotonic()
    assert run(closed_during_a_step()) == ["the episode was closed"] * 2
    assert time.monotonic() - begin < 0.25
    assert run(play(shared, "a")) == ["hello", "1: a"]


def test_a_cancelled_call_leaves_the_worker_in_order(shared):
    async def cancelled():
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(play(shared, "sleep 0.2"), 0.1)
        return await play(shared, "a")

    assert run(cancelled()) == ["hello", "1: a"]


def test_closing_the_pool_ends_calls_processes_and_descriptors():
    before = set(os.listdir("/proc/self/fd"))
    pool = EnvironmentPool(config(num_workers=2))
    pids = pool.worker_pids
    threading.Timer(0.3, pool.close).start()
    begin = time.monotonic()
    results = together(*(play(pool, "hang") for _ in range(5)))
    assert [result[-1] for result in results] == ["the episode was closed"] * 5
    assert time.monotonic() - begin < deadlines.seconds(5)
    pool.close()
    assert all(is_gone(pid) for pid in pids)
    assert run(play(pool, "a")) == ["the episode was closed"]
    assert len(os.listdir("/proc/self/fd")) <= len(before)


def test_coroutines_run_on_one_loop_and_schemas_of_tools_are_known():
    with EnvironmentPool(config("Async")) as pool:
        assert pool.tools == ({"type": "function", "function": {"name": "look", "parameters": {}}},)
        assert run(play(pool, "a", "b")) == ["q", "awaited", "awaited"]
        *_, error = run(play(pool, "raise"))
        assert "KeyError: 'later'" in error and "scripted.py, line" in error


NO_START = {
    "no module": (EnvironmentConfig(name="no_such_module:Game"), "No module named 'no_such_module'"),
    "no class": (config("None"), "has no attribute 'None'"),
    "no step": (config("NoStep"), "must be a class with the methods reset and step; missing: step"),
    "settings": (config(colour="red"), "does not take them: got an unexpected keyword argument 'colour'"),
    "tools": (config("BadTools"), "has the tool 'calculator'; a schema looks like"),
}


@pytest.mark.parametrize(("broken", "match"), NO_START.values(), ids=NO_START)
def test_what_cannot_start_says_why(broken, match):
    before = psutil.Process().children()
    with pytest.raises(ValueError, match=match):
        EnvironmentPool(broken.model_copy(update={"num_workers": 1}))
    assert psutil.Process().children() == before


def test_nothing_of_an_environment_is_imported_here(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_game.py").write_text("from tests.environments.scripted import Scripted as Game\n")
    with EnvironmentPool(EnvironmentConfig(name="own_game:Game", num_workers=1)) as pool:
        assert run(play(pool, "a")) == ["hello", "1: a"]
    assert "own_game" not in sys.modules
