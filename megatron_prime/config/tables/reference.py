"""[reference]: the reference model."""

from typing import Literal

from megatron_prime.config.section import Section, UserPath


class ReferenceConfig(Section):
    """The reference of the log-ratio."""

    mode: Literal["freeze", "policy"] = "freeze"
    """freeze keeps the starting weights; policy takes the old policy's log-probs: one model less."""
    path: UserPath | None = None
    """HF checkpoint of the frozen reference; default prm.path."""
