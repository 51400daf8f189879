import pytest

from megatron_prime.environments.registry import load_environment
from megatron_prime.environments.worker import EpisodeHost

ROW = {"messages": [{"role": "user", "content": "q"}], "answer": "7"}


@pytest.fixture
def host():
    options = {"name": "tests.environments.scripted:Scripted", "settings": {}, "tools": [], "timeout_s": 5.0}
    return EpisodeHost(load_environment(options | {"code": {}}))


def step(episode, text):
    response = {"text": text, "token_ids": [1], "finish_reason": "stop", "turn": 0}
    return {"call": "step", "episode": episode, "response": response}


def test_a_host_keeps_one_environment_an_episode_until_it_is_over(host):
    for episode in (1, 2):
        host.answer({"call": "reset", "episode": episode, "row": ROW})
    assert host.answer(step(1, "a"))["messages"][0]["content"] == "1: a"
    assert host.answer(step(2, "b"))["messages"][0]["content"] == "1: b"
    assert host.answer(step(2, "c") | {"ended": [1, 7]})["messages"][0]["content"] == "2: b c"
    assert host.answer(step(1, "d"))["failed"] == "error", "the episode is over"


def test_it_describes_its_environment(host):
    described = host.answer({"call": "describe"})
    assert described["tools"] == [] and set(described["places"]) == {"reset", "step"}
    assert "Scripted.step (" in described["places"]["step"]


def test_failures_are_replies(host):
    host.answer({"call": "reset", "episode": 1, "row": ROW})
    failed = host.answer(step(1, "raise"))
    assert failed["failed"] == "error" and "in _raise" in failed["traceback"]
    assert host.answer(step(1, "return nothing"))["failed"] == "invalid"
