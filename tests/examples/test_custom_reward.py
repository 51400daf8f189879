"""The example works by import path and as a server, with the same rewards."""

import subprocess
import sys
from pathlib import Path

import pytest

from megatron_prime.config.tables.reward import RewardConfig
from megatron_prime.rewards import RewardPools
from megatron_prime.sample import Sample
from tests.support.samples import samples

EXAMPLES = Path(__file__).parents[2] / "examples"
RESPONSES = [("so 7", "7"), ("so 8", "7"), ("", "7"), ("word " * 299 + "7", "7"), ("word " * 999 + "7", "7")]
REWARDS = [1.0, 0.0, 0.0, 0.75, 0.5]


def rewards(verifier):
    with RewardPools(RewardConfig(verifier=verifier, timeout_s=30.0)) as pools:
        return [
            outcome.reward for outcome in pools.verify_all(samples([(*pair, "", "") for pair in RESPONSES]))
        ]


def test_the_reward_works_by_import_path(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    assert rewards("custom_reward:concise_match") == REWARDS


@pytest.fixture
def url():
    command = [sys.executable, str(EXAMPLES / "custom_reward.py"), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.kill()


def test_the_reward_works_as_a_server(url):
    assert rewards(url) == REWARDS


def test_a_reward_may_read_the_prompt_and_the_row(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    messages = [{"role": "user", "content": "What is 3 plus 4?"}]
    rows = [
        Sample("it is 7", "7", messages=messages),
        Sample("it is of course exactly 7", "7", messages=messages),
        Sample("it is of course exactly 7", "7", messages=messages, metadata={"max_words": 9}),
        Sample("it is 7", "7", messages=messages, metadata={"max_words": 2}),
    ]
    with RewardPools(RewardConfig(verifier="custom_reward:match_in_words", timeout_s=30.0)) as pools:
        assert [outcome.reward for outcome in pools.verify_all(rows)] == [1.0, 0.0, 1.0, 0.0]
