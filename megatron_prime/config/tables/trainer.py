"""The [trainer] table: the training loop."""

from typing import Literal

from megatron_prime.config.section import NonNegative, Positive, Section


class TrainerConfig(Section):
    """The training loop and its batches."""

    num_steps: Positive
    """Number of trainer steps, the iterations of Algorithm 1."""
    prompts_per_step: Positive = 256
    """Prompts in one training batch, after filtering."""
    max_tokens_per_microbatch: Positive = 16384
    """Maximum number of packed tokens per forward pass on one rank."""
    logprob_chunk_tokens: Positive = 1024
    """Number of tokens whose logits are in memory at the same time."""
    eval_every: NonNegative = 0
    """Trainer steps between evaluations; 0, the default, evaluates at the start and at the end only."""
    logprob_kernel: Literal["auto", "torch", "triton"] = "auto"
    """Kernels of the output layer: auto uses Triton on GPUs if it is installed, and plain torch elsewhere."""
