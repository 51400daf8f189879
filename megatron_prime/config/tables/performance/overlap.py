"""The [overlap] table: communication that overlaps with computation."""

from typing import Self

from pydantic import model_validator

from megatron_prime.config.section import Section


class OverlapConfig(Section):
    """Communication between ranks that runs concurrently with computation; all is off by default."""

    grad_reduce: bool = False
    """Reduce buckets of gradients over data-parallel ranks during the backward pass."""
    param_gather: bool = False
    """Gather updated weights from data-parallel ranks during the next minibatch's forward pass; needs grad_reduce."""
    tensor_parallel: bool = False
    """Overlap the collectives of tensor parallelism with the matrix products around them. Needs Transformer Engine and
    sequence parallelism; all microbatches are padded to trainer.max_tokens_per_microbatch."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        # Megatron supports the overlapped gather only together with the overlapped reduction.
        if self.param_gather and not self.grad_reduce:
            raise ValueError("param_gather = true needs grad_reduce = true")
        return self
