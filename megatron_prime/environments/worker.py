"""The main program of a worker process of `EnvironmentPool`: it hosts the environments of many episodes.

A request is {"call": "describe"}, {"call": "reset", "episode", "row"} or {"call": "step", "episode", "response"}, and
names under "ended" the episodes that are over. The reply to a failure is {"failed": kind, "detail", "traceback"}.
"""

import asyncio
import inspect
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from megatron_prime.environments.protocol import Response, Row, Step
from megatron_prime.environments.registry import EnvironmentFactory, load_environment
from megatron_prime.environments.replies import InvalidReplyError, prompt_of, reply_of
from megatron_prime.workers.errors import describe_error, describe_fault
from megatron_prime.workers.program import serve


def main() -> None:
    """Answer requests until stdin is closed. The arguments are the time limit in seconds and the options as JSON."""
    timeout_s, options = sys.argv[1:3]

    def load() -> Callable[[Any], Any]:
        factory = load_environment(json.loads(options))
        # What the class and the schemas of its tools import takes seconds, which no call may be charged with.
        factory.tools()
        return EpisodeHost(factory).answer

    serve(load, float(timeout_s), takes_lists=True)


class EpisodeHost:
    """The environments of the episodes of one process."""

    def __init__(self, factory: EnvironmentFactory) -> None:
        self._factory = factory
        self._environments: dict[int, Any] = {}
        # One loop for all calls, so that clients and tasks of async environments outlive a call.
        self._loop: asyncio.AbstractEventLoop | None = None

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return the reply to a request."""
        for episode in request.get("ended", ()):
            self._environments.pop(episode, None)
        try:
            return getattr(self, f"_{request['call']}")(request)
        except InvalidReplyError as error:
            return {"failed": "invalid", "detail": str(error), "traceback": ""}
        except BaseException as error:  # noqa: BLE001 - such as SystemExit and asyncio.CancelledError
            if request["call"] == "describe":
                return {"failed": "error", "detail": describe_fault(error), "traceback": ""}
            detail, lines = describe_error(error)
            return {"failed": "error", "detail": detail, "traceback": lines}

    def _describe(self, _: Mapping[str, Any]) -> dict[str, Any]:
        """Return the tools, and the places of the methods for messages about what has no traceback."""
        environment = self._factory.create()
        places = {name: _place(getattr(environment, name)) for name in ("reset", "step")}
        return {"tools": list(self._factory.tools()), "places": places}

    def _reset(self, request: Mapping[str, Any]) -> dict[str, Any]:
        environment = self._factory.create()
        self._environments[request["episode"]] = environment
        messages = self._call(environment.reset, Row(**request["row"]))
        return {"messages": prompt_of(messages, _place(environment.reset))}

    def _step(self, request: Mapping[str, Any]) -> dict[str, Any]:
        environment = self._environments[request["episode"]]
        step = self._call(environment.step, Response(**request["response"]))
        return reply_of(step, _place(environment.step))

    def _call(self, method: Callable[..., Any], argument: Row | Response) -> Sequence[Any] | Step:
        result = method(argument)
        if not inspect.isawaitable(result):
            return result
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            asyncio.set_event_loop(self._loop)
        return self._loop.run_until_complete(_awaited(result))


async def _awaited(result: Any) -> Any:  # noqa: ANN401 - anything that can be awaited
    return await result


def _place(method: Callable[..., Any]) -> str:
    """Return the name of a method with its file and line."""
    function = inspect.unwrap(getattr(method, "__func__", method))
    code = getattr(function, "__code__", None)
    name = getattr(function, "__qualname__", type(function).__name__)
    return f"{name} ({code.co_filename}, line {code.co_firstlineno})" if code is not None else name
