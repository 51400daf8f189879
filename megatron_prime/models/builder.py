"""Build this rank's part of a Megatron GPT from an HF checkpoint.

Policy, PRM and reference are all built here. Every argument follows from the HF config: Megatron's defaults (dropout
0.1, fusions, LayerNorm) never reach a model.
"""

from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.tensor_parallel import layers as tensor_parallel_layers
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_prime.config.model_options import ModelOptions
from megatron_prime.config.tables.performance.memory import RecomputeConfig
from megatron_prime.hf.checkpoint import HFCheckpointReader
from megatron_prime.hf.convert import import_hf
from megatron_prime.hf.mapping import ExpertShare, ParameterPieces, hf_tensors, parameters_of
from megatron_prime.hf.shape import ModelShape, read_shape
from megatron_prime.hf.stages import stage_layers
from megatron_prime.hf.training_limits import ModelSplit, check_training
from megatron_prime.hf.weight_files import loaded_megatron_weights
from megatron_prime.models.experts import PackedRouter, RoutedTransformerLayer, expert_settings
from megatron_prime.models.gpt import ScoringGPTModel
from megatron_prime.models.layers import PackedAttention, RMSNorm
from megatron_prime.models.megatron_folder import load_megatron_weights
from megatron_prime.models.passthrough import with_passthrough
from megatron_prime.models.rope import set_frequencies, softmax_scale
from megatron_prime.models.te_layers import fill_quantized, quantized_parts, te_layer_spec, te_settings
from megatron_prime.parallel.topology import Topology


@dataclass(frozen=True)
class BuiltModel:
    """This rank's part of one model."""

    chunks: tuple[ScoringGPTModel, ...]
    """One chunk of layers, or one per virtual stage of the pipeline."""
    shape: ModelShape
    parameters: tuple[ParameterPieces, ...]
    """The HF slices of each local parameter, for import and export."""
    module_names: dict[str, str] = field(default_factory=dict)
    """Parameter name -> name in the module, where Transformer Engine's fused norms and experts rename it."""

    def named_parameters(self) -> dict[str, torch.nn.Parameter]:
        """Return the module's parameters by the names of `parameters`, for both kinds of layers."""
        by_module_name = dict(self.module.named_parameters())
        return {
            piece.megatron_name: by_module_name[
                self.module_names.get(piece.megatron_name, piece.megatron_name)
            ]
            for piece in self.parameters
        }

    @cached_property
    def module(self) -> torch.nn.Module:
        """All chunks as one module; with several chunks, parameter names begin with the chunk's index."""
        return self.chunks[0] if len(self.chunks) == 1 else torch.nn.ModuleList(self.chunks)


def build_model(
    hf_path: Path,
    topology: Topology,
    load_weights: bool = True,
    recompute: RecomputeConfig | None = None,
    role: str = "policy",
    options: ModelOptions | None = None,
) -> BuiltModel:
    """Build this rank's part of the model and fill it from the checkpoint's safetensors, a slice at a time.

    Args:
        hf_path: HF checkpoint directory, or one with weights in Megatron's format (see hf.weight_files).
        topology: the layout; tensor must divide heads, KV heads and FFN, pipeline the layers.
        load_weights: False leaves random weights, for a checkpoint that is loaded afterwards.
        recompute: activations that the backward pass recomputes; default none.
        role: the role whose FP8 recipe the model uses.
        options: FP8, overlap and [megatron]; default none of them.

    Raises ValueError for an unsupported model, a layout that does not divide it, or missing, extra or misshapen
    tensors.
    """
    shape = read_shape(hf_path)
    check_training(shape, _split_of(topology))
    layers = _layers_of(shape, topology)[topology.pipeline_rank]
    config = transformer_config(shape, topology, recompute, role, options)
    chunks = _build_chunks(shape, topology, layers, config)
    parameters, module_names = _parameters(shape, topology, layers)
    built = BuiltModel(chunks, shape, parameters, module_names)
    _mark_experts(built)
    weights = loaded_megatron_weights(hf_path) if load_weights else None
    if weights is not None:
        load_megatron_weights(chunks, weights, topology)
    elif load_weights:
        reader = HFCheckpointReader(hf_path)
        reader.check_against(hf_tensors(shape))
        _import_weights(built, reader)
    return built


def _split_of(topology: Topology) -> ModelSplit:
    return ModelSplit(
        tensor=topology.tensor_size,
        pipeline=topology.pipeline_size,
        virtual_pipeline=topology.virtual_size,
        expert=topology.expert_size,
        expert_tensor=topology.expert_tensor_size,
        sequence_parallel=topology.sequence_parallel,
        layers_per_stage=topology.layers_per_stage,
    )


def _layers_of(shape: ModelShape, topology: Topology) -> list[tuple[range, ...]]:
    """Return the layers of each chunk of each pipeline stage."""
    return stage_layers(shape, topology.pipeline_size, topology.virtual_size, topology.layers_per_stage)


def _parameters(
    shape: ModelShape, topology: Topology, layers: tuple[range, ...]
) -> tuple[tuple[ParameterPieces, ...], dict[str, str]]:
    """Return this rank's parameters and the differing names of the module (see BuiltModel.module_names)."""
    of_rank = partial(
        parameters_of,
        shape,
        tp_size=topology.tensor_size,
        tp_rank=topology.tensor_rank,
        layers=layers if topology.virtual_size > 1 else layers[0],
        is_first_stage=topology.is_first_stage,
        is_last_stage=topology.is_last_stage,
        experts=ExpertShare(
            topology.expert_size,
            topology.expert_rank,
            topology.expert_tensor_size,
            topology.expert_tensor_rank,
        ),
    )
    parameters = of_rank()
    if topology.platform.layers == "torch":
        return parameters, {}
    fused = of_rank(norm_style="te", expert_style="grouped")
    return parameters, {
        plain.megatron_name: other.megatron_name
        for plain, other in zip(parameters, fused, strict=True)
        if plain.megatron_name != other.megatron_name
    }


def _import_weights(built: BuiltModel, reader: HFCheckpointReader) -> None:
    """Fill every parameter. Parameters in FP8 are filled from a temporary tensor, one at a time."""
    named = built.named_parameters()
    plain = [piece for piece in built.parameters if len(quantized_parts(named[piece.megatron_name])) == 1]
    import_hf({piece.megatron_name: named[piece.megatron_name] for piece in plain}, plain, reader.read_slice)
    for piece in set(built.parameters) - set(plain):
        parameter = named[piece.megatron_name]
        values = torch.nn.Parameter(torch.zeros(piece.shape, dtype=parameter.dtype, device=parameter.device))
        import_hf({piece.megatron_name: values}, [piece], reader.read_slice)
        fill_quantized(parameter, values)


def _mark_experts(built: BuiltModel) -> None:
    """Mark expert parameters, so that their gradients are reduced over the ranks that hold the same experts.

    Megatron marks them only with expert parallelism. Without the mark, replicas over tensor-parallel ranks would drift
    apart, and a checkpoint of one expert-parallel size would not load in another.
    """
    named = built.named_parameters()
    for parameter in built.parameters:
        if parameter.is_expert:
            named[parameter.megatron_name].allreduce = False  # type: ignore[attr-defined]


def _build_chunks(
    shape: ModelShape, topology: Topology, layers: tuple[range, ...], config: TransformerConfig
) -> tuple[ScoringGPTModel, ...]:
    last = len(layers) - 1
    return tuple(
        _build_chunk(
            shape,
            topology,
            config,
            chunk_layers,
            pre_process=topology.is_first_stage and index == 0,
            post_process=topology.is_last_stage and index == last,
            vp_stage=index if last else None,
        )
        for index, chunk_layers in enumerate(layers)
    )


def _build_chunk(
    shape: ModelShape,
    topology: Topology,
    config: TransformerConfig,
    layers: range,
    *,
    pre_process: bool,
    post_process: bool,
    vp_stage: int | None,
) -> ScoringGPTModel:
    module = ScoringGPTModel(
        config=config,
        transformer_layer_spec=_layer_specs(shape, layers, topology.platform.layers),  # type: ignore[arg-type]
        vocab_size=shape.padded_vocab_size(topology.tensor_size),
        max_sequence_length=shape.max_position_embeddings,
        pre_process=pre_process,
        post_process=post_process,
        share_embeddings_and_output_weights=shape.tied,
        position_embedding_type="rope",
        rotary_base=shape.rope_theta,  # type: ignore[arg-type]
        pg_collection=topology.process_groups,
        vp_stage=vp_stage,
    )
    module.num_real_tokens = shape.vocab_size
    assert isinstance(module.rotary_pos_emb, RotaryEmbedding)
    set_frequencies(module.rotary_pos_emb, shape)
    return module.to(device=topology.platform.device, dtype=topology.platform.dtype)


def transformer_config(
    shape: ModelShape,
    topology: Topology,
    recompute: RecomputeConfig | None = None,
    role: str = "policy",
    options: ModelOptions | None = None,
) -> TransformerConfig:
    """Return Megatron's configuration of the model in this layout."""
    recompute, options = recompute or RecomputeConfig(), options or ModelOptions()
    dtype = topology.platform.dtype
    settings: dict[str, Any] = {
        "num_layers": shape.num_layers,
        "hidden_size": shape.hidden_size,
        "ffn_hidden_size": shape.ffn_hidden_size,
        "num_attention_heads": shape.num_attention_heads,
        "num_query_groups": shape.num_query_groups,
        "kv_channels": shape.head_dim,
        "softmax_scale": softmax_scale(shape),
        "normalization": "RMSNorm",
        "layernorm_epsilon": shape.rms_norm_eps,
        "qk_layernorm": shape.qk_norm,
        "gated_linear_unit": True,
        "activation_func": F.silu,
        "add_bias_linear": False,
        "add_qkv_bias": shape.qkv_bias,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "tensor_model_parallel_size": topology.tensor_size,
        "pipeline_model_parallel_size": topology.pipeline_size,
        "virtual_pipeline_model_parallel_size": topology.virtual_size if topology.virtual_size > 1 else None,
        "pipeline_model_parallel_layout": _pipeline_layout(shape, topology),
        "context_parallel_size": topology.context_size,
        "sequence_parallel": topology.sequence_parallel,
        "params_dtype": dtype,
        "pipeline_dtype": dtype,
        "bf16": dtype == torch.bfloat16,
        # The loss divides by the global token count itself; gradients must be summed, not averaged, over ranks.
        "calculate_per_token_loss": True,
        # Microbatches are packed to different lengths, from which parallel.pipeline_messages calculates shapes.
        "variable_seq_lengths": True,
        # Megatron would wait for the whole device after each batch, because of a race that torch 1.13 has fixed.
        "batch_p2p_sync": False,
        "moe_token_dispatcher_type": "alltoall",  # Megatron requires it for variable lengths, even of dense models
    }
    settings |= _recompute_settings(recompute) | _device_settings(topology)
    if shape.is_moe:
        settings |= expert_settings(shape, topology)
    if topology.platform.layers == "transformer_engine":
        settings |= te_settings(shape, topology, role, options)
    if topology.virtual_size > 1:
        # One direction per call. With two stages both neighbors are the same rank, and a batched call for both
        # directions would pair what is sent forward with what is expected from the other direction.
        settings |= {"overlap_p2p_comm": True, "batch_p2p_comm": False}
    return with_passthrough(TransformerConfig, options.megatron, **settings)


def _pipeline_layout(shape: ModelShape, topology: Topology) -> list[list[str]] | None:
    """Return Megatron's description of chunks of unequal size, in model order; None for equal ones, its default."""
    stages = _layers_of(shape, topology)
    chunks = [stage[index] for index in range(topology.virtual_size) for stage in stages]
    if len({len(layers) for layers in chunks}) == 1:
        return None
    layout = [["decoder"] * len(layers) for layers in chunks]
    return [["embedding", *layout[0]], *layout[1:-1], [*layout[-1], "loss"]]


def _recompute_settings(recompute: RecomputeConfig) -> dict[str, Any]:
    """Return Megatron's arguments for the activations that the backward pass computes again."""
    if recompute.granularity == "none":
        return {}
    settings: dict[str, Any] = {"recompute_granularity": recompute.granularity}
    if recompute.granularity == "selective":
        return settings | {"recompute_modules": list(recompute.modules)}
    return settings | {"recompute_method": recompute.method, "recompute_num_layers": recompute.num_layers}


def _device_settings(topology: Topology) -> dict[str, Any]:
    """Return Megatron's arguments that depend on the kind of device: fused kernels on GPUs, plain torch on CPUs."""
    if topology.platform.is_cuda:
        return {
            "bias_activation_fusion": True,
            "bias_dropout_fusion": True,
            # The output layer is Megatron's own and uses a kernel of apex for this.
            "gradient_accumulation_fusion": tensor_parallel_layers._grad_accum_fusion_available,
        }
    return {
        "use_cpu_initialization": True,
        "batch_p2p_comm": False,
        "bias_activation_fusion": False,
        "bias_dropout_fusion": False,
        "masked_softmax_fusion": False,
        "persist_layer_norm": False,
        "apply_rope_fusion": False,
        "gradient_accumulation_fusion": False,
    }


def _layer_specs(shape: ModelShape, layers: range, kind: str) -> TransformerBlockSubmodules:
    norm: Any = RMSNorm  # Megatron's annotation leaves classes out
    make_spec = _torch_layer_spec
    if kind == "transformer_engine":
        from megatron.core.extensions.transformer_engine import TENorm

        norm, make_spec = TENorm, te_layer_spec
    return TransformerBlockSubmodules(
        layer_specs=[make_spec(shape, shape.has_experts(layer)) for layer in layers], layer_norm=norm
    )


def _torch_layer_spec(shape: ModelShape, has_experts: bool) -> ModuleSpec:
    layer = get_gpt_layer_local_spec(
        num_experts=shape.num_experts if has_experts else None,
        qk_layernorm=shape.qk_norm,
        normalization="RMSNorm",
    )
    submodules: Any = layer.submodules
    if has_experts:
        layer.module = RoutedTransformerLayer
        submodules.mlp.submodules.router = PackedRouter
        # Transformer Engine fuses no norm into experts, so a checkpoint of its layers keeps the name.
        del submodules.sharded_state_dict_keys_map["pre_mlp_layernorm."]
    submodules.input_layernorm = RMSNorm
    submodules.pre_mlp_layernorm = RMSNorm
    attention: Any = submodules.self_attention
    attention.submodules.core_attention = PackedAttention
    if shape.qk_norm:
        attention.submodules.q_layernorm = RMSNorm
        attention.submodules.k_layernorm = RMSNorm
    return layer
