from typing import Any

import numpy
import pytest

from megatron_prime.environments.protocol import Step
from megatron_prime.environments.replies import InvalidReplyError, prompt_of, reply_of
from tests.environments.scripted import RETURNED

USER = {"role": "user", "content": "q"}


def test_replies_and_ends_become_json_values():
    tool = {"role": "tool", "name": "f", "content": "1", "tool_call_id": "a"}
    half: Any = numpy.float32(0.5)
    assert reply_of(Step.reply([tool, USER], reward=half), "here") == {
        "messages": [tool, USER], "is_done": False, "reward": 0.5, "outcome": None, "reason": "",
    }  # fmt: skip
    assert reply_of(Step.done(True, reason="r"), "here") == {
        "messages": [], "is_done": True, "reward": 0.0, "outcome": 1.0, "reason": "r",
    }  # fmt: skip


@pytest.mark.parametrize("step", RETURNED.values(), ids=RETURNED)
def test_what_is_no_reply_is_refused_with_its_place(step):
    with pytest.raises(InvalidReplyError, match=r"^here"):
        reply_of(step, "here")


@pytest.mark.parametrize(
    ("messages", "match"),
    [
        ([], "are empty"),
        ([USER, {"role": "assistant", "content": "a"}], "end with one of the assistant"),
        (USER, "a value of type dict"),
        ("q", "a value of type str"),
        (None, "a value of type NoneType"),
        ([USER, 3], "message 1 is 3"),
    ],
)
def test_prompts_that_nobody_answers_are_refused(messages, match):
    with pytest.raises(InvalidReplyError, match=match):
        prompt_of(messages, "here")


def test_a_prompt_may_hold_turns_of_the_assistant():
    messages = [{"role": "system", "content": "s"}, USER, {"role": "assistant", "content": "a"}, USER]
    assert prompt_of(tuple(messages), "here") == messages


def test_a_reason_can_be_written_to_any_log():
    reason: Any = "\ud800\x00\x1b[2J" + "x" * 10**6
    written = reply_of(Step.done(1.0, reason=reason), "here")["reason"]
    assert written.encode().startswith(b"\\ud800  [2Jx") and len(written) < 600
