"""The [environment] table: what answers the policy between the turns of a response."""

from typing import Any, Self

from pydantic import Field, model_validator

from megatron_prime.config.section import NameOrPath, Positive, PositiveFloat, Section

SINGLE_TURN = "single_turn"
"""Name of the environment that never answers: a response is one turn, which the verifier judges."""


class EnvironmentConfig(Section):
    """Responses of several turns: the policy writes, an environment replies, and so on until one of them ends it.

    Environments run in processes beside the one that samples; see docs/environments.md.
    """

    name: NameOrPath = SINGLE_TURN
    """single_turn, tools (which runs the tools below), guess_number, or a class as package.module:Class."""
    tools: tuple[NameOrPath, ...] = ()
    """The tools of name = "tools": calculator, python, or functions as package.module:function."""
    settings: dict[str, Any] = Field(default={})
    """Keyword arguments of the environment's class."""
    max_turns: Positive = 8
    """Most turns of the policy in a response; one that needs more is truncated."""
    max_turn_tokens: Positive | None = None
    """Most tokens of one turn of the policy; default: what rollout.max_response_tokens leaves. It counts all turns and
    the replies between them."""
    num_workers: Positive = 4
    """Number of processes that run environments, beside each process that samples."""
    timeout_s: PositiveFloat = 30.0
    """Time limit of one call of an environment, in seconds. A process that exceeds it is killed."""

    @property
    def is_multi_turn(self) -> bool:
        """True if an environment replies to the policy."""
        return self.name != SINGLE_TURN

    @model_validator(mode="after")
    def _check_tools(self) -> Self:
        if self.name == "tools" and not self.tools:
            raise ValueError("name = 'tools' needs environment.tools, such as [\"calculator\"]")
        if self.tools and self.name != "tools":
            raise ValueError(f"tools are those of name = 'tools', but name = {self.name!r}: leave them out")
        if len(set(self.tools)) != len(self.tools):
            raise ValueError("tools names one twice")
        return self
