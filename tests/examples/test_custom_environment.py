"""The example works by import path, in a worker process, as docs/environments.md has it."""

import asyncio
from pathlib import Path

from megatron_prime.config.tables.environment import EnvironmentConfig
from megatron_prime.environments.pool import EnvironmentPool

EXAMPLES = Path(__file__).parents[2] / "examples"
ROW = {"messages": [{"role": "user", "content": "the data's own prompt"}], "answer": "2"}


async def walk(pool, *texts):
    episode = pool.episode()
    messages = await episode.reset(ROW)
    steps = [
        await episode.step({"text": text, "token_ids": [1], "finish_reason": "stop", "turn": turn})
        for turn, text in enumerate(texts)
    ]
    return messages, steps


def test_the_maze_is_walked_in_a_worker(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    with EnvironmentPool(EnvironmentConfig(name="custom_environment:Maze", num_workers=1)) as pool:
        messages, steps = asyncio.run(walk(pool, "left", "I go right.", "dance", "right", "take"))
        assert messages[0]["content"].endswith("This room is empty.")
        assert [step["reward"] for step in steps] == [0.0, 0.1, 0.0, 0.1, 0.0]
        assert [step["messages"][0]["content"] for step in steps[1:4]] == [
            "This room is empty.",
            "I know left, right and take.",
            "Something glitters here.",
        ]
        assert (steps[-1]["is_done"], steps[-1]["outcome"]) == (True, 1.0)
        _, (lost,) = asyncio.run(walk(pool, "take"))
        assert lost["outcome"] == 0.0


def test_the_example_is_short():
    assert len((EXAMPLES / "custom_environment.py").read_text().splitlines()) <= 50
