"""The environment that runs the tools which the policy calls, until it answers without a call.

A turn without a call ends the episode, and the verifier judges its text.
"""

import functools
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from megatron_prime.environments.protocol import Response, Row, Step
from megatron_prime.environments.tool_calls import MalformedCall, tool_calls
from megatron_prime.environments.toolbox import Toolbox
from megatron_prime.sample import ChatMessage

SHARE_OF_TIME = 0.8
"""Share of environment.timeout_s that the calls of a turn may take; the rest is for starting sandboxes."""
CALL_ID = "call00000"
"""The id that some templates ask for: nine letters and digits."""


class Environment:
    """The environment of one episode.

    Args:
        tools: Names or import paths.
        code: The table [reward.code] as JSON values.
        timeout_s: Time limit of one step, in seconds.
    """

    def __init__(self, tools: Sequence[str], code: Mapping[str, Any], timeout_s: float) -> None:
        self._toolbox = _toolbox(tuple(tools), json.dumps(dict(code), sort_keys=True))
        self._timeout_s = timeout_s

    @property
    def tools(self) -> Sequence[Mapping[str, Any]]:
        """Schemas of the tools."""
        return self._toolbox.schemas

    def reset(self, row: Row) -> Sequence[ChatMessage]:
        """Return the row's own prompt."""
        return row.messages

    async def step(self, response: Response) -> Step:
        """Execute the calls of a turn."""
        deadline = time.monotonic() + SHARE_OF_TIME * self._timeout_s
        calls = tool_calls(response.text, self._toolbox.parameters)
        if not calls:
            return Step.done()
        messages = []
        for call in calls:
            seconds = deadline - time.monotonic()
            if isinstance(call, MalformedCall):
                result = f"Error: {call.reason}."
            elif seconds <= 0:
                result = "Error: no time is left for this call."
            else:
                result = await self._toolbox.call(call.name, call.arguments, seconds)
            messages.append(
                {"role": "tool", "name": call.name or "tool", "content": result, "tool_call_id": CALL_ID}
            )
        return Step.reply(messages)


@functools.cache
def _toolbox(tools: tuple[str, ...], code: str) -> Toolbox:
    """Return the tools of this process: finding a sandbox or a schema for each episode would take long."""
    return Toolbox(tools, json.loads(code))
