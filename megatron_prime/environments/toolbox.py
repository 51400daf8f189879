"""The tools of an environment: built-in ones and functions of a user's, called by name with a time limit."""

import functools
import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from megatron_prime.environments.registry import TOOLS, check_schema, load_object, tool_names
from megatron_prime.workers.errors import describe_error, plain

MAX_RESULT_CHARACTERS = 8000
"""Characters of a result that the policy sees; of a longer one the middle is left out."""
Schema = Mapping[str, Any]


class Tool(Protocol):
    """A tool. The class of a built-in one is constructed with the table [reward.code] as JSON values."""

    @property
    def schema(self) -> Schema:
        """{"type": "function", "function": {"name", "description", "parameters"}}."""
        ...

    async def call(self, arguments: Mapping[str, Any], seconds: float) -> str:
        """Return the result of a call, which takes at most `seconds` where the tool can see to it.

        An exception is a result as well: the policy sees its type and message. ToolFailureError is not.
        """
        ...


class ToolFailureError(Exception):
    """The machine failed and not the call, so that the episode has to end."""


@dataclass(frozen=True)
class FunctionTool:
    """A user's function, plain or async, called with the arguments as keywords."""

    function: Any

    @property
    def schema(self) -> Schema:
        """The schema that follows from signature and docstring. Raises ValueError if they say too little."""
        return _schema_of(self.function)

    async def call(self, arguments: Mapping[str, Any], seconds: float) -> str:
        """Return the function's result: text as it is, everything else as JSON."""
        result = self.function(**arguments)
        if inspect.isawaitable(result):
            result = await result
        return result if isinstance(result, str) else json.dumps(result, ensure_ascii=False, default=str)


@functools.cache
def _schema_of(function: Any) -> Schema:  # noqa: ANN401 - a user's function
    # Processes without such tools do not need the import, which takes a second.
    from transformers.utils import get_json_schema

    try:
        return get_json_schema(function)
    except Exception as error:  # its errors have many types
        raise ValueError(
            f"environment.tools: no schema follows from {function.__qualname__}: {error}; a tool needs types "
            "for all parameters, and a docstring in Google's style that describes each of them"
        ) from error


class Toolbox:
    """The tools that `environment.tools` names.

    Args:
        names: Built-in names or import paths of functions.
        code: The table [reward.code] as JSON values.

    Raises:
        ValueError: A function does not exist or has no schema, a name occurs twice, or the sandbox is missing.
    """

    def __init__(self, names: Sequence[str], code: Mapping[str, Any]) -> None:
        self._tools: dict[str, Tool] = {}
        for spec in names:
            tool = _load(spec, code)
            check_schema(spec, tool.schema)
            name = tool.schema["function"]["name"]
            if name in self._tools:
                raise ValueError(
                    f"environment.tools: two tools have the name {name!r}: rename the function of {spec!r}"
                )
            self._tools[name] = tool

    @property
    def schemas(self) -> list[Schema]:
        """The schemas of all tools, as chat templates take them."""
        return [tool.schema for tool in self._tools.values()]

    @property
    def parameters(self) -> dict[str, Schema]:
        """The JSON schema of the parameters of each tool by name."""
        return {name: tool.schema["function"].get("parameters") or {} for name, tool in self._tools.items()}

    async def call(self, name: str, arguments: Mapping[str, Any], seconds: float) -> str:
        """Return the result of a call, or its error, as the policy sees it.

        Raises:
            ToolFailureError: The machine failed.
        """
        try:
            result = await self._tools[name].call(arguments, seconds)
        except ToolFailureError:
            raise
        except (Exception, SystemExit) as error:  # noqa: BLE001 - the policy's arguments may cause any error
            # The place of a built-in tool or of the user's function is of no use to the policy.
            line, _ = describe_error(error)
            result = f"Error: {line.rpartition(' (')[0] or line}"
        return shortened(plain_lines(result))


def _load(spec: str, code: Mapping[str, Any]) -> Tool:
    if ":" in spec:
        function = load_object("environment.tools", spec)
        if not callable(function):
            raise ValueError(f"environment.tools: {spec!r} is no function")
        return FunctionTool(function)
    if spec not in tool_names():
        raise ValueError(f"environment.tools = {spec!r}: known are {', '.join(tool_names())}")
    return load_object("environment.tools", f"{TOOLS}.{spec}:Tool")(code)


def plain_lines(text: str) -> str:
    """Return a text that a tokenizer can take, without halves of characters and control characters."""
    return "\n".join(plain(line.expandtabs(4)) for line in text.split("\n"))


def shortened(text: str, most: int = MAX_RESULT_CHARACTERS) -> str:
    """Return a text without its middle if it is longer than `most` characters."""
    if len(text) <= most:
        return text
    left_out = len(text) - most
    return f"{text[: most // 2]}\n... ({left_out:,} characters left out) ...\n{text[-(most - most // 2) :]}"
