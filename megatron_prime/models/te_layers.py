"""Layers of NVIDIA Transformer Engine: fused norms and linear layers, attention by cuDNN or flash kernels, FP8.

Megatron-core wraps them. This module selects what packed models use and refuses what cannot run before weights load.
Transformer Engine runs on GPUs only; `platform.layers` says whether a run uses it (see parallel.platform).
"""

from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_with_transformer_engine_spec
from megatron.core.transformer.spec_utils import ModuleSpec

from megatron_prime.config.model_options import ModelOptions
from megatron_prime.config.tables.performance.fp8 import Fp8Recipe
from megatron_prime.hf.shape import ModelShape
from megatron_prime.hf.training_limits import fp8_faults
from megatron_prime.models.experts import PackedRouter, RoutedTransformerLayer
from megatron_prime.parallel.platform import Platform
from megatron_prime.parallel.topology import Topology

ROLES = ("policy", "prm", "reference")
FP8_TOKENS: dict[str, int] = {"delayed": 16, "tensorwise": 16, "blockwise": 128, "mxfp8": 32}
"""Multiple to which a rank's tokens are padded: tokens are the inner dimension of products in the backward pass, and
blockwise gathers whole blocks over tensor-parallel ranks."""


@dataclass(frozen=True)
class _Support:
    """Hardware and software that a recipe needs."""

    first: tuple[int, int]
    """Minimum compute capability."""
    before: tuple[int, int] | None = None
    """Compute capability from which another recipe replaces this one."""
    cuda: tuple[int, int] = (12, 1)
    advice: str = ""


SUPPORT: dict[Fp8Recipe, _Support] = {
    "delayed": _Support((8, 9)),
    "tensorwise": _Support((8, 9)),
    "blockwise": _Support((9, 0), cuda=(12, 9), advice="'tensorwise' runs there"),
    "mxfp8": _Support((10, 0), (12, 0), (12, 8), "on Hopper take 'blockwise' or 'tensorwise'"),
}
"""Requirements of Transformer Engine 2.11 (transformer_engine/pytorch/quantization.py)."""


def check_acceleration(options: ModelOptions, platform: Platform) -> None:
    """Raise ValueError when a requested recipe or overlap cannot run on this machine.

    Megatron would ignore FP8 without Transformer Engine. Costs nothing, so that a run ends before it reads weights.
    """
    recipes: dict[str, Fp8Recipe] = {}
    for role in ROLES:
        recipe = options.fp8.recipe_of(role)
        if recipe != "none":
            recipes[f"fp8.{role}"] = recipe
    wanted = [f"{where} = {recipe!r}" for where, recipe in recipes.items()]
    if options.overlap.tensor_parallel:
        wanted.append("overlap.tensor_parallel = true")
    if wanted and platform.layers != "transformer_engine":
        if not platform.is_cuda:
            reason = "this run is on a CPU"
        else:
            reason = platform.layers_reason or "platform.layers = 'torch'"
        raise ValueError(f"{wanted[0]} needs Transformer Engine on GPUs, but {reason}")
    if recipes and platform.dtype != torch.bfloat16:
        raise ValueError(
            f"{wanted[0]} needs platform.dtype = 'bf16'; master weights are fp32 in the optimizer all the same"
        )
    for where, recipe in recipes.items():
        fault = fp8_fault(recipe, platform.compute_capability, platform.cuda_version)
        if fault is not None:
            raise ValueError(f"{where} = {recipe!r}: {fault}")


def lost_without(platform: Platform) -> str | None:
    """Return a message on what a run on a GPU lacks without Transformer Engine; None on a CPU, or with it."""
    if not platform.layers_reason and not (platform.is_cuda and platform.layers == "torch"):
        return None
    reason = platform.layers_reason or "platform.layers = 'torch'"
    return (
        f"Transformer Engine is not used: {reason}. Lost are its fused norms and linear layers, attention by cuDNN "
        "(also for context parallelism, which gathers keys and values instead), grouped products of experts, and FP8. "
        "Each layer waits for the GPU several times, which leaves it idle most of the time: fit for tests alone. "
        "Install Transformer Engine (docs/gpu.md)"
    )


def fp8_fault(
    recipe: Fp8Recipe, capability: tuple[int, int] | None, cuda: tuple[int, int] | None
) -> str | None:
    """Return why a recipe cannot run with this compute capability and CUDA version; None if it can."""
    support = SUPPORT[recipe]
    advice = f"; {support.advice}" if support.advice else ""
    if capability is None or cuda is None:
        return "there is no GPU"
    if capability < support.first or (support.before is not None and capability >= support.before):
        upto = "" if support.before is None else f" and less than {_dotted(support.before)}"
        return (
            f"this GPU has compute capability {_dotted(capability)}, the recipe needs {_dotted(support.first)} or more"
            f"{upto}{advice}"
        )
    if cuda < support.cuda:
        return f"torch was built with CUDA {_dotted(cuda)}, the recipe needs {_dotted(support.cuda)} or newer{advice}"
    return None


def te_layer_spec(shape: ModelShape, has_experts: bool) -> ModuleSpec:
    """Return a layer with norms fused into the next linear layers, and experts computed by one grouped GEMM."""
    layer = get_gpt_layer_with_transformer_engine_spec(
        num_experts=shape.num_experts if has_experts else None,
        moe_grouped_gemm=has_experts,
        qk_layernorm=shape.qk_norm,
    )
    if has_experts:
        submodules: Any = layer.submodules
        layer.module = RoutedTransformerLayer
        submodules.mlp.submodules.router = PackedRouter
    return layer


def te_settings(shape: ModelShape, topology: Topology, role: str, options: ModelOptions) -> dict[str, Any]:
    """Return the settings that Transformer Engine adds to Megatron's TransformerConfig for one role."""
    settings: dict[str, Any] = {"apply_rope_fusion": True}
    if shape.is_moe:
        settings |= {"moe_grouped_gemm": True, "moe_permute_fusion": True}
    fp8 = options.fp8
    recipe = fp8.recipe_of(role)
    for fault in fp8_faults(shape, fp8, role):
        raise ValueError(fault)
    if recipe != "none":
        settings |= {
            "fp8": fp8.format,
            "fp8_recipe": recipe,
            "fp8_amax_history_len": fp8.amax_history_len,
            "fp8_amax_compute_algo": fp8.amax_compute_algo,
            "fp8_param": fp8.has_primary_weights(role),
            "first_last_layers_bf16": bool(fp8.bf16_layers_at_start or fp8.bf16_layers_at_end),
            "num_layers_at_start_in_bf16": fp8.bf16_layers_at_start,
            "num_layers_at_end_in_bf16": fp8.bf16_layers_at_end,
        }
    if options.overlap.tensor_parallel and topology.tensor_size > 1:
        settings["tp_comm_overlap"] = True
    return settings


_overlap_buffers: tuple[tuple[int, int], bool] | None = None


def start_overlap_buffers(num_tokens: int, hidden_size: int, topology: Topology, has_fp8: bool) -> None:
    """Allocate Transformer Engine's buffers for overlapped tensor-parallel communication, once per process.

    Args:
        num_tokens: tokens of every microbatch on a context-parallel rank, over all tensor-parallel ranks.
        hidden_size: of the models.
        topology: the layout.
        has_fp8: whether the products are FP8.

    Raises ValueError when a second model has another shape: the buffers are one set a process.
    """
    global _overlap_buffers
    wanted = ((num_tokens, hidden_size), has_fp8)
    if _overlap_buffers is not None:
        if _overlap_buffers != wanted:
            raise ValueError(
                f"overlap.tensor_parallel has buffers for (tokens, hidden size), FP8 = {_overlap_buffers}, and another "
                f"model needs {wanted}: they are one set a process; switch it off, or let the models be alike"
            )
        return
    from transformer_engine.pytorch.module.base import initialize_ub  # type: ignore[import-not-found]

    initialize_ub(
        [num_tokens, hidden_size],
        topology.tensor_size,
        use_fp8=has_fp8,
        dtype=topology.platform.dtype,
        bootstrap_backend="nccl",
    )
    _overlap_buffers = wanted


def quantized_parts(tensor: torch.Tensor) -> list[torch.Tensor]:
    """Return the plain tensors (values, scales) of an FP8 tensor of Transformer Engine; else the tensor itself."""
    parts = getattr(tensor, "get_data_tensors", None)
    if parts is None:
        return [tensor]
    return [part for part in parts() if part is not None]


def fill_quantized(parameter: torch.Tensor, values: torch.Tensor) -> None:
    """Set an FP8 parameter to these values, quantized, and its optimizer's master weights to the values unrounded.

    Slices of an FP8 tensor are copies, and writing to one would change nothing: values must be the whole tensor.
    """
    with torch.no_grad():
        parameter.copy_(values)
    if hasattr(parameter, "_high_precision_init_val"):
        # The distributed optimizer initializes its master weights from here; otherwise they would be rounded values.
        parameter._high_precision_init_val = values.detach().cpu()  # type: ignore[attr-defined]


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
