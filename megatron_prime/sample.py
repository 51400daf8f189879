"""The input of verifiers. Processes that verify import this module, so it imports no torch."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

ChatMessage = Mapping[str, Any]
"""A chat message: `role`, `content` and what else the data has, such as `tool_calls`."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A response with everything that is known about its prompt. See `json_fields`."""

    response_text: str
    """Text without special tokens. Of several turns, the last one that the policy wrote."""
    answer: str
    """Ground truth of the row."""
    source: str = ""
    """Name of the data source; "" if unknown."""
    ability: str = ""
    """Kind of problem as named in the data; "" if unknown."""
    messages: Sequence[ChatMessage] = ()
    """Chat messages of the prompt, with system prompt and instruction; one message of the user for a prompt that is
    text. Empty where no verifier of the run reads them."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """The row's columns besides prompt, answer, source and ability. Empty where no verifier of the run reads them."""
    response_ids: Sequence[int] = ()
    """Tokens of the whole response, with those of an environment's replies."""
    finish_reason: str = "stop"
    """stop, length or abort; see `types.FinishReason`."""
    turns: Sequence[tuple[str, str]] = ()
    """(text of the policy, reply of the environment) of each turn; empty for a response of one turn."""

    def json_fields(self, names: Iterable[str]) -> dict[str, Any]:
        """Return some fields by name, as JSON can hold them."""
        fields = {name: getattr(self, name) for name in names}
        if "response_ids" in fields:  # an array
            fields["response_ids"] = list(self.response_ids)
        return fields
