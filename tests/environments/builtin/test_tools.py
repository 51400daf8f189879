import asyncio

from megatron_prime.environments.builtin.tools import Environment
from megatron_prime.environments.protocol import Response, Row

CALL = '<tool_call>\n{"name": "calculator", "arguments": {"expression": "%s"}}\n</tool_call>'


def step(text, timeout_s=10.0):
    environment = Environment(["calculator"], {}, timeout_s)
    assert environment.reset(Row([{"role": "user", "content": "q"}], "4")) == [
        {"role": "user", "content": "q"}
    ]
    return asyncio.run(environment.step(Response(text, (), "stop", 0)))


def test_calls_are_executed_in_order_and_malformed_ones_answered():
    text = CALL % "2 + 2" + CALL % "1 / 0" + '<tool_call>{"name": "search"}</tool_call>'
    result = step(text)
    assert [(message["role"], message["name"], message["content"]) for message in result.messages] == [
        ("tool", "calculator", "4"),
        ("tool", "calculator", "Error: ZeroDivisionError: division by zero"),
        ("tool", "tool", "Error: there is no tool 'search'; the tools are calculator."),
    ]
    assert not result.is_done and result.outcome is None


def test_a_turn_without_a_call_ends_the_episode_for_the_verifier():
    result = step("The answer is 4.")
    assert result.is_done and result.outcome is None and result.messages == ()


def test_calls_without_time_are_told_so():
    (message,) = step(CALL % "2 + 2", timeout_s=0.0).messages
    assert message["content"] == "Error: no time is left for this call."


def test_the_schemas_are_those_of_the_tools():
    (schema,) = Environment(["calculator"], {}, 1.0).tools
    assert schema["function"]["name"] == "calculator"
