"""The [reference] table: the reference model."""

from typing import Literal

from megatron_prime.config.section import Section, UserPath


class ReferenceConfig(Section):
    """The reference model of the process rewards' log-ratio and of the KL term."""

    mode: Literal["freeze", "policy"] = "freeze"
    """freeze holds a model with the starting weights; policy uses the old policy's log-probs and needs no model."""
    path: UserPath | None = None
    """HF checkpoint of the frozen reference; default prm.path in training and model.path for `eval-prm`."""
