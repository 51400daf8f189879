import asyncio
import contextlib
import json
from dataclasses import replace
from typing import Any

import pytest

from megatron_prime.config.run import PrimeConfig
from megatron_prime.environments.episodes import open_environments
from megatron_prime.rollout.episode import EpisodeError
from megatron_prime.types import FinishReason, Prompt
from tests.data.conversations.chat_templates import QWEN2_5
from tests.support import deadlines
from tests.support.tokenizers import byte_tokenizer

USER = {"role": "user", "content": "Guess."}


def tokenizer_of(template: str | None = QWEN2_5):
    tokenizer = byte_tokenizer(template)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>", "<|im_start|>"]})
    tokenizer.eos_token = "<|im_end|>"
    return tokenizer


TOKENIZER = tokenizer_of()
STOP: Any = TOKENIZER.eos_token_id


def open_(name="guess_number", rollout=None, **environment) -> Any:
    config = PrimeConfig.model_validate(
        {
            "run_dir": "runs/a",
            "model": {"path": "m"},
            "trainer": {"num_steps": 1},
            "environment": {"name": name, "num_workers": 1, "timeout_s": 20.0, **environment},
            "rollout": rollout or {},
        }
    )
    environments = open_environments(config, TOKENIZER, [STOP])
    return environments if environments is not None else contextlib.nullcontext()


@pytest.fixture(scope="module")
def games():
    with open_() as environments:
        yield environments


def prompt_of(messages=(USER,), answer="37", index=0):
    return Prompt(index, (1, 2), answer, messages=json.dumps(list(messages)), metadata='{"level": 3}')


async def play(environments, prompt, *texts):
    episode = await environments.open(prompt)
    try:
        replies = [
            await episode.step([*TOKENIZER.encode(text, add_special_tokens=False), STOP], FinishReason.STOP)
            for text in texts
        ]
    finally:
        episode.close()
    return episode, replies


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, deadlines.seconds(60)))


def test_an_episode_replies_with_tokens_until_it_ends(games):
    episode, (low, won) = run(play(games, prompt_of(), "12", "37"))
    assert (
        TOKENIZER.decode(episode.prompt.token_ids)
        == "<|im_start|>user\nGuess.<|im_end|>\n<|im_start|>assistant\n"
    )
    assert episode.prompt == replace(prompt_of(), token_ids=episode.prompt.token_ids)
    assert (
        TOKENIZER.decode(low.token_ids) == "\n<|im_start|>user\nToo low.<|im_end|>\n<|im_start|>assistant\n"
    )
    assert (low.is_done, low.outcome, low.reward) == (False, None, 0.0)
    assert (won.token_ids, won.is_done, won.outcome) == ((), True, 1.0)
    assert won.reason == "it guessed 37 in turn 2"
    assert games.counts["episodes"] >= 1


def test_the_schemas_of_tools_are_in_the_prompt_and_calls_are_answered():
    call = '<tool_call>\n{"name": "calculator", "arguments": {"expression": "6 * 7"}}\n</tool_call>'
    with open_("tools", tools=["calculator"]) as environments:
        episode, (reply, end) = run(play(environments, prompt_of(), call, "It is 42."))
    text = TOKENIZER.decode(episode.prompt.token_ids)
    assert "# Tools" in text and "Evaluate an arithmetic expression" in text
    assert "<tool_response>\n42\n</tool_response><|im_end|>" in TOKENIZER.decode(reply.token_ids)
    assert end.is_done and end.outcome is None


def test_a_row_without_messages_gets_those_of_the_environment(games):
    episode, _ = run(play(games, prompt_of((), index=5)))
    assert "from 1 to 100" in TOKENIZER.decode(episode.prompt.token_ids)
    assert "from 1 to 100" in json.loads(episode.prompt.messages)[0]["content"]


def test_resets_of_a_row_must_agree_and_of_other_rows_need_not():
    with open_("tests.environments.scripted:Scripted") as environments:
        assert (
            run(play(environments, prompt_of(), "a"))[0].prompt
            == run(play(environments, prompt_of(), "b"))[0].prompt
        )
        run(play(environments, prompt_of(answer="random")))
        run(play(environments, prompt_of(answer="random", index=1)))
        with pytest.raises(EpisodeError, match="reset returned other messages for this row"):
            run(play(environments, prompt_of(answer="random")))


FAILURES = {
    "a long prompt": (
        "guess_number",
        [USER | {"content": "x" * 200}],
        "",
        r"than rollout.max_prompt_tokens = 150",
    ),
    "no message": (
        "guess_number",
        [{"role": "system", "content": "s"}],
        "",
        "the policy answers one of the user",
    ),
    "a step": ("tests.environments.scripted:Scripted", [USER], "raise", "KeyError: 'no such room'"),
    "a role": ("tests.environments.scripted:Scripted", [USER], "return unknown_role", "has the role 'human'"),
}


@pytest.mark.parametrize(("name", "messages", "text", "match"), FAILURES.values(), ids=FAILURES)
def test_failures_are_errors_of_the_episode(name, messages, text, match):
    with (
        open_(name, rollout={"max_prompt_tokens": 150}) as environments,
        pytest.raises(EpisodeError, match=match),
    ):
        run(play(environments, prompt_of(messages), text))


def test_an_episode_closed_while_it_waits_fails(games):
    async def closed():
        episode = await games.open(prompt_of())
        step = asyncio.ensure_future(episode.step([STOP], FinishReason.STOP))
        await asyncio.sleep(0)
        episode.close()
        with pytest.raises(EpisodeError, match="closed"):
            await step

    run(closed())


def test_one_turn_needs_no_processes():
    with open_("single_turn") as environments:
        assert environments is None


def test_an_environment_that_does_not_start_is_an_error_of_the_user():
    with pytest.raises(ValueError, match=r"does not start: .*No module named 'no_such_module_x'"):
        open_("no_such_module_x:Game")
