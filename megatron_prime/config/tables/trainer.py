"""[trainer]: the training loop."""

from typing import Literal

from megatron_prime.config.section import NonNegative, Positive, Section


class TrainerConfig(Section):
    """The loop."""

    num_steps: Positive
    """Iterations of Algorithm 1."""
    prompts_per_step: Positive = 256
    """Prompts in one training batch, after filtering."""
    max_tokens_per_microbatch: Positive = 16384
    """Packed tokens of one forward pass on one rank."""
    logprob_chunk_tokens: Positive = 1024
    """Tokens whose logits exist at one time."""
    eval_every: NonNegative = 0
    """Evaluate every so many steps; 0 at the start and the end only."""
    logprob_kernel: Literal["auto", "torch", "triton"] = "auto"
    """What works on the logits: auto takes the Triton kernels on a GPU that has triton, and plain torch elsewhere."""
