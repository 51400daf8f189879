import asyncio
import sys

import pytest

from megatron_prime.environments.toolbox import MAX_RESULT_CHARACTERS, Toolbox, shortened

HERE = "tests.environments.test_toolbox"


def weather(city: str, days: int = 1) -> dict:
    """Return the weather.

    Args:
        city: Name of the city.
        days: Number of days.
    """
    return {"city": city, "days": days, "sky": "blue"}


async def slow(text: str) -> str:
    """Return a text after a while.

    Args:
        text: The text.
    """
    await asyncio.sleep(0)
    return text * 10_000


def fails(text: str) -> str:
    """Fail.

    Args:
        text: The text.
    """
    raise KeyError(f"no {text}")


def leaves(text: str) -> str:
    """Leave.

    Args:
        text: The text.
    """
    sys.exit(text)


def untyped(text):
    """Return a text."""
    return text


def call(name, **arguments):
    toolbox = Toolbox(
        [f"{HERE}:{each}" for each in ("weather", "slow", "fails", "leaves")] + ["calculator"], {}
    )
    return asyncio.run(toolbox.call(name, arguments, 5.0))


def test_functions_have_a_schema_and_results():
    toolbox = Toolbox([f"{HERE}:weather", "calculator"], {})
    schema, _ = toolbox.schemas
    assert schema["function"]["name"] == "weather"
    assert toolbox.parameters["weather"] == {
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "Name of the city."},
            "days": {"type": "integer", "description": "Number of days."},
        },
        "required": ["city"],
    }
    assert call("weather", city="Zürich") == '{"city": "Zürich", "days": 1, "sky": "blue"}'
    assert call("calculator", expression="2 + 2") == "4"


def test_errors_are_results_without_places():
    assert call("fails", text="rain") == "Error: KeyError: 'no rain'"
    assert call("leaves", text="now") == "Error: SystemExit: now"
    assert call("calculator", expression="1 / 0").startswith("Error: ZeroDivisionError")


def test_long_results_lose_their_middle():
    result = call("slow", text="ab")
    assert len(result) < MAX_RESULT_CHARACTERS + 100 and "(12,000 characters left out)" in result
    assert shortened("abcdef", 4) == "ab\n... (2 characters left out) ...\nef"
    assert call("slow", text="\ud800\x1b").startswith("\\ud800 ")


@pytest.mark.parametrize(
    ("tools", "match"),
    [
        (["calculatr"], "environment.tools = 'calculatr': known are calculator, python"),
        ([f"{HERE}:nothing"], "has no attribute 'nothing'"),
        ([f"{HERE}:HERE"], "is no function"),
        ([f"{HERE}:untyped"], "no schema follows from untyped"),
        (["calculator", "megatron_prime.environments.tools.calculator:evaluate"], "no schema|two tools"),
    ],
)
def test_what_is_no_tool_is_refused(tools, match):
    with pytest.raises(ValueError, match=match):
        Toolbox(tools, {})


def test_two_tools_have_two_names():
    with pytest.raises(ValueError, match="two tools have the name 'weather'"):
        Toolbox([f"{HERE}:weather", "tests.environments.test_toolbox:weather"], {})
