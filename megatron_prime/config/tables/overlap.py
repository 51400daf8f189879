"""[overlap]: communication that overlaps with computation."""

from typing import Self

from pydantic import model_validator

from megatron_prime.config.section import Section


class OverlapConfig(Section):
    """Messages between ranks that run beside computation."""

    grad_reduce: bool = False
    """Reduce a bucket of gradients over data-parallel ranks while the backward pass goes on."""
    param_gather: bool = False
    """Gather updated weights from data-parallel ranks during the next minibatch's forward pass; needs grad_reduce."""
    tensor_parallel: bool = False
    """Overlap the gathers and reduces of tensor parallelism with the products around them. Needs Transformer Engine,
    sequence parallelism, and microbatches of one size: all are filled up to trainer.max_tokens_per_microbatch."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.param_gather and not self.grad_reduce:
            raise ValueError("param_gather = true needs grad_reduce = true")
        return self
