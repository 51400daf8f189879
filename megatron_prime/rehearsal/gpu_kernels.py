"""Operations for which torch chooses the kernel by the device: on tensors without content, those of a GPU.

Without them, torch would run the norm, the attention and the activation step by step, and every intermediate result
would count as memory. What these kernels allocate inside themselves is not seen.
"""

from typing import Any

import torch
import torch.nn.functional as F

aten = torch.ops.aten


class _RMSNorm(torch.autograd.Function):
    """The norm in one kernel; it keeps its input and a float32 factor per row."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:  # type: ignore[override]  # noqa: ANN401
        factors = hidden.new_empty(*hidden.shape[:-1], 1, dtype=torch.float32)
        ctx.save_for_backward(hidden, weight, factors)
        return _kernel(hidden)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]  # noqa: ANN401
        hidden, weight, _ = ctx.saved_tensors
        return _kernel(hidden), _kernel(weight)


def rms_norm(
    hidden: torch.Tensor, _shape: object, weight: torch.Tensor, _eps: float | None = None
) -> torch.Tensor:
    """Take the place of torch.nn.functional.rms_norm."""
    return _RMSNorm.apply(hidden, weight)  # type: ignore[return-value]


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """Take the place of torch's scaled_dot_product_attention: flash attention, or with a mask the efficient one."""
    if attn_mask is None and query.dtype != torch.float32:
        return aten._scaled_dot_product_flash_attention(
            query, key, value, 0.0, is_causal, False, scale=scale
        )[0]
    if enable_gqa:
        repeats = query.shape[1] // key.shape[1]
        key, value = (tensor.repeat_interleave(repeats, dim=1) for tensor in (key, value))
    bias = None
    if attn_mask is not None:
        bias = torch.zeros_like(attn_mask, dtype=query.dtype).expand(*query.shape[:2], *attn_mask.shape[-2:])
    return aten._scaled_dot_product_efficient_attention(
        query, key, value, bias, torch.is_grad_enabled(), 0.0, is_causal, scale=scale
    )[0]


class FusedTileMath:
    """The buffers of the Triton kernels of the output layer: one tile of logits, in the dtype of the weights."""

    def __init__(self, num_tokens: int, num_columns: int, like: torch.Tensor, temperature: float) -> None:
        del temperature
        self._buffer = like.new_empty(num_tokens, -(-num_columns // 16) * 16)

    def product_buffer(self, num_tokens: int, num_columns: int) -> torch.Tensor:
        """See `TileMath`."""
        return self._buffer[:num_tokens, :num_columns]

    def accumulate(
        self,
        product_CW: torch.Tensor,
        labels_C: torch.Tensor,
        first_column: int,
        maximum_C: torch.Tensor,
        sums_3C: torch.Tensor,
    ) -> None:
        """See `TileMath`."""
        maximum_C.add_(product_CW[0, 0])

    def gradient(
        self,
        product_CW: torch.Tensor,
        labels_C: torch.Tensor,
        first_column: int,
        per_token_4C: torch.Tensor,
    ) -> torch.Tensor:
        """See `TileMath`."""
        return product_CW.neg_()


def swiglu(gates: torch.Tensor) -> torch.Tensor:
    """Take the place of Megatron's fused silu(gate) * up."""
    return gates.new_empty(*gates.shape[:-1], gates.shape[-1] // 2).zero_()


def swiglu_back(_grad: torch.Tensor, gates: torch.Tensor) -> torch.Tensor:
    """Take the place of its gradient."""
    return _kernel(gates)


def weighted_swiglu(gates: torch.Tensor, _weights: torch.Tensor) -> torch.Tensor:
    """Take the place of the same times a weight per token."""
    return swiglu(gates)


def weighted_swiglu_back(
    _grad: torch.Tensor, gates: torch.Tensor, weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Take the place of its gradient."""
    return _kernel(gates), _kernel(weights)


def l2_norm(
    _chunk: int, _flag: torch.Tensor, tensors: list[list[torch.Tensor]], *_: object
) -> tuple[torch.Tensor, None]:
    """Take the place of the norm of all gradients: one kernel in Transformer Engine, a wait for each in plain torch."""
    return tensors[0][0].new_empty(1, dtype=torch.float32).neg_(), None


def _kernel(like: torch.Tensor) -> torch.Tensor:
    """Return a result of the same shape: memory, and one kernel that writes it."""
    return torch.empty_like(like, memory_format=torch.contiguous_format).zero_()


def install(logprob_kernel: str) -> None:
    """Use these from now on in this process.

    Args:
        logprob_kernel: `trainer.logprob_kernel`; all but torch means Triton, which CUDA builds of torch include.
    """
    from megatron.core.fusions import fused_bias_swiglu
    from megatron.core.optimizer import clip_grads

    from megatron_prime.logprobs import output_layer

    F.rms_norm = rms_norm
    F.scaled_dot_product_attention = attention
    for replacement in (swiglu, swiglu_back, weighted_swiglu, weighted_swiglu_back):
        setattr(fused_bias_swiglu, replacement.__name__, replacement)
    clip_grads.l2_norm_impl = l2_norm
    output_layer._add_product = _add_product
    if logprob_kernel != "torch":
        output_layer._tile_math = lambda _kernel: FusedTileMath


def _add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """Add left @ right to a float32 total in place; cuBLAS does it for narrower factors too."""
    aten.addmm.dtype_out(total, left, right, torch.float32, out=total)


def cpu_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """Take the place of scaled_dot_product_attention on a CPU, where flash attention takes masks too."""
    return aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, 0.0, is_causal, attn_mask=attn_mask, scale=scale
    )[0]


def install_for_cpu() -> None:
    """Use the kernels of a CPU from now on in this process."""
    F.scaled_dot_product_attention = cpu_attention
