from dataclasses import replace
from typing import Any

import pytest

from megatron_prime.config.run import PrimeConfig
from megatron_prime.environments.trial import try_environment
from tests.data.conversations.chat_templates import CHATML, GEMMA, QWEN3
from tests.environments.test_episodes import TOKENIZER, prompt_of, tokenizer_of


def tried(name="guess_number", tokenizer=TOKENIZER, prompts=None, rollout=None, **environment):
    config = PrimeConfig.model_validate(
        {
            "run_dir": "runs/a",
            "model": {"path": "m"},
            "trainer": {"num_steps": 1},
            "environment": {"name": name, "timeout_s": 5.0, **environment},
            "rollout": rollout or {},
        }
    )
    stop_ids: Any = [tokenizer.eos_token_id]
    return try_environment(config, tokenizer, stop_ids, prompts or [prompt_of()])


def test_an_environment_that_works_has_neither_faults_nor_notes():
    assert tried() == ([], [])
    assert tried("tools", tools=["calculator"]) == ([], [])
    assert tried("single_turn") == ([], [])


SCRIPTED = "tests.environments.scripted:Scripted"
FAULTS = {
    "no start": ({"name": "no_such_module_x:Game"}, "does not start: "),
    "settings": ({"name": SCRIPTED, "settings": {"colour": 1}}, "does not take them"),
    "tools without a docstring": (
        {"name": "tools", "tools": ["tests.environments.test_toolbox:untyped"]},
        "no schema follows from untyped",
    ),
    "a reset that differs": (
        {"name": SCRIPTED, "prompts": [prompt_of(answer="random")]},
        "row 0: reset returned other messages",
    ),
    "no schemas in the template": (
        {"name": "tools", "tools": ["calculator"], "tokenizer": tokenizer_of(CHATML)},
        "leaves out the tools calculator",
    ),
    "no template": (
        {"name": "tools", "tools": ["calculator"], "tokenizer": tokenizer_of(None)},
        "only a chat template can write the schemas",
    ),
    "other stop": ({"tokenizer": tokenizer_of(GEMMA)}, "which begins with no token that ends a turn"),
    "a short budget": (
        {"rollout": {"max_response_tokens": 30}},
        "does not hold a turn, a reply and another turn",
    ),
    "a long prompt": ({"rollout": {"max_prompt_tokens": 10}}, "more than rollout.max_prompt_tokens = 10"),
}


@pytest.mark.parametrize(("run", "fault"), FAULTS.values(), ids=FAULTS)
def test_what_the_run_would_meet_is_a_fault(run, fault):
    (message,), _ = tried(**run)
    assert fault in message


def test_thoughts_that_the_template_leaves_out_are_noted():
    faults, (note,) = tried(tokenizer=tokenizer_of(QWEN3))
    assert faults == [] and "leaves out the thoughts" in note


def test_prompts_that_schemas_make_too_long_are_counted():
    prompts = [replace(prompt_of(), token_ids=(1,) * length, index=length) for length in (1, 2, 900)]
    faults, (warning,) = tried(
        "tools", tools=["calculator"], prompts=prompts, rollout={"max_prompt_tokens": 1200}
    )
    assert faults == [] and "with them, 1 of 3 prompts exceed rollout.max_prompt_tokens = 1200" in warning


def test_a_tokenizer_that_loses_the_tags_is_refused():
    tokenizer = tokenizer_of()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<tool_call>"]})
    (fault,), _ = tried("tools", tools=["calculator"], tokenizer=tokenizer)
    assert "loses <tool_call>" in fault
