import pytest

from megatron_prime.config.run import PrimeConfig
from megatron_prime.preflight.environments import environment_faults


def faults(command="train", rollout=None, data=None, **environment):
    config = PrimeConfig.model_validate(
        {
            "run_dir": "runs/a",
            "model": {"path": "m"},
            "trainer": {"num_steps": 1},
            "environment": environment,
            "rollout": rollout or {},
            "data": data or {},
        }
    )
    return list(environment_faults(config, command))


@pytest.mark.parametrize("environment", [{}, {"name": "guess_number"}, {"name": "json:JSONDecoder"}], ids=str)
def test_an_environment_that_can_be_used_has_no_fault(environment):
    assert faults(**environment) == []


FAULTS = {
    "unknown": ({"name": "guess"}, "environment.name = 'guess': known are guess_number, "),
    "unknown tool": (
        {"name": "tools", "tools": ["calc"]},
        "environment.tools = 'calc': known are calculator, python",
    ),
    "tools of rows": (
        {"name": "guess_number", "data": {"tools_field": "tools"}},
        "data.tools_field = 'tools': with an environment",
    ),
    "no module": ({"name": "no_such_module_x:Game"}, "there is no module no_such_module_x"),
    "long turns": (
        {"name": "guess_number", "max_turn_tokens": 200, "rollout": {"max_response_tokens": 100}},
        "environment.max_turn_tokens = 200 exceeds rollout.max_response_tokens = 100",
    ),
    "no second turn": (
        {"name": "guess_number", "rollout": {"max_response_tokens": 2}},
        "rollout.max_response_tokens = 2 holds no second turn",
    ),
}


@pytest.mark.parametrize(("environment", "fault"), FAULTS.values(), ids=FAULTS)
def test_an_environment_that_cannot_be_used_is_refused(environment, fault):
    (message,) = faults(**environment)
    assert fault in message
    assert faults(command="sft", **environment) == []
