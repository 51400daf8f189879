"""Fields of megatron-core's configurations that cannot be set in `[megatron]`, and the option to use instead."""

MODEL = "it describes the model: config.json says it"
FP8 = "set fp8.policy, fp8.prm and the other options of [fp8]"
NO_FP4 = "FP4 and kitchen recipes are not supported"
FP16 = "training is in fp32 or bf16, without loss scaling: platform.dtype"
ADAMW = "the optimizer is AdamW"
NO_FSDP = "weights are not sharded over data-parallel ranks here; the distributed optimizer shards its states"
NO_CAPACITY = "a dropped token would make log-probs depend on what else is in the microbatch"
BY_PACKING = "a loss over a microbatch depends on the packing"
LENGTHS = "microbatches differ in length, which CUDA graphs do not take"
ENGINE = "rollouts come from an engine; the training models do not generate"
TILES = "the output layer works in tiles that never hold whole logits"
OFFLOAD = "memory.offload_policy_optimizer, memory.offload_prm and memory.offload_reference do this by phase"
OVERLAP = "weights are read and moved between the steps, which asks for more than Megatron's own overlap"
NO_DROPOUT = "dropout is off: log-probs of the same weights must agree"
INITIAL = "weights come from the checkpoint"

# Every field of the installed megatron-core is either listed in these tables or passed through; a test compares the
# two, so that a new release adds no field unnoticed (ADR 0019).
_TRANSFORMER = {
    "set parallel.tensor": "tensor_model_parallel_size",
    "set parallel.pipeline": "pipeline_model_parallel_size",
    "set parallel.virtual_pipeline": (
        "virtual_pipeline_model_parallel_size overlap_p2p_comm batch_p2p_comm overlap_p2p_comm_warmup_flush "
        "microbatch_group_size_per_vp_stage"
    ),
    "set parallel.context": (
        "context_parallel_size hierarchical_context_parallel_sizes hybrid_context_parallel cp_comm_type "
        "max_seqlen_per_dp_cp_rank"
    ),
    "set parallel.expert": "expert_model_parallel_size moe_extended_tp",
    "set parallel.expert_tensor": "expert_tensor_parallel_size",
    "set parallel.sequence_parallel": "sequence_parallel",
    "set platform.dtype": "bf16 params_dtype pipeline_dtype enable_autocast autocast_dtype fp32_residual_connection",
    FP16: "fp16",
    "set memory.recompute": (
        "recompute_granularity recompute_method recompute_num_layers recompute_modules moe_layer_recompute "
        "distribute_saved_activations num_microbatches_with_partial_activation_checkpoints"
    ),
    OFFLOAD: (
        "cpu_offloading cpu_offloading_num_layers cpu_offloading_activations cpu_offloading_weights "
        "cpu_offloading_double_buffering fine_grained_activation_offloading offload_modules "
        "min_offloaded_tensor_size"
    ),
    "set policy.load_balance_coef": (
        "moe_aux_loss_coeff moe_router_load_balancing_type moe_router_enable_expert_bias "
        "moe_router_bias_update_rate"
    ),
    "set rollout.sglang.routing_replay": "moe_enable_routing_replay",
    NO_DROPOUT: "hidden_dropout attention_dropout",
    # With a capacity limit, the tokens that an expert drops depend on the other sequences of the microbatch, so
    # results would depend on the packing.
    NO_CAPACITY: (
        "moe_expert_capacity_factor moe_pad_expert_input_to_capacity moe_token_dropping moe_token_drop_policy "
        "moe_router_force_load_balancing moe_input_jitter_eps"
    ),
    # These losses are means over a microbatch, and the microbatches follow from the packing and the layout.
    BY_PACKING: "moe_z_loss_coeff mtp_loss_scaling_factor dsa_indexer_loss_coeff dsa_indexer_use_sparse_loss",
    "set parallel.stage_layers": (
        "num_layers_in_first_pipeline_stage num_layers_in_last_pipeline_stage pipeline_model_parallel_layout "
        "account_for_embedding_in_pipeline_split account_for_loss_in_pipeline_split mtp_standalone"
    ),
    "it is always set here: losses are sums over the global batch": "calculate_per_token_loss",
    "it is always set here: microbatches are packed": "variable_seq_lengths",
    "it is always 'alltoall' here, which packed microbatches need": (
        "moe_token_dispatcher_type moe_enable_deepep moe_flex_dispatcher_backend moe_deepep_num_sms "
        "moe_hybridep_num_sms"
    ),
    INITIAL: "perform_initialization use_cpu_initialization init_method_std embedding_init_method_std "
    "init_model_with_meta_device",
    # Every packed microbatch has a different shape; graphs pay off in decoding, where SGLang uses them (ADR 0021).
    LENGTHS: (
        "enable_cuda_graph cuda_graph_use_single_mempool cuda_graph_retain_backward_graph "
        "cuda_graph_warmup_steps external_cuda_graph cuda_graph_impl cuda_graph_scope"
    ),
    ENGINE: (
        "flash_decode inference_rng_tracker inference_sampling_seed use_inference_optimized_layers "
        "inference_fuse_tp_communication mlp_chunks_for_prefill batch_invariant_mode test_mode symmetric_ar_type"
    ),
    TILES: (
        "cross_entropy_loss_fusion cross_entropy_fusion_impl defer_embedding_wgrad_compute wgrad_deferral_limit"
    ),
    # Weights are sent, exported and offloaded between the steps, when a gather or a gradient must not be pending.
    OVERLAP: (
        "delay_wgrad_compute overlap_moe_expert_parallel_comm ep_overlap_early_attn_memory_release "
        "deallocate_pipeline_outputs"
    ),
    "set overlap.tensor_parallel": (
        "tp_comm_overlap tp_comm_bulk_wgrad tp_comm_bulk_dgrad tp_comm_overlap_ag "
        "tp_comm_overlap_rs tp_comm_overlap_rs_dgrad tp_comm_split_ag tp_comm_atomic_ag tp_comm_split_rs "
        "tp_comm_atomic_rs tp_comm_overlap_disable_qkv tp_comm_overlap_disable_fc1 tp_comm_bootstrap_backend"
    ),
    FP8: (
        "fp8 fp8_recipe fp8_param fp8_quantizer_factory fp8_margin fp8_interval fp8_amax_history_len "
        "fp8_amax_compute_algo fp8_wgrad fp8_dot_product_attention fp8_multi_head_attention tp_only_amax_red "
        "first_last_layers_bf16 num_layers_at_start_in_bf16 num_layers_at_end_in_bf16 "
        "activation_func_fp8_input_store moe_router_padding_for_fp8 moe_router_padding_for_quantization "
        "disable_parameter_transpose_cache"
    ),
    NO_FP4: (
        "use_kitchen use_kitchen_attention kitchen_attention_backend fp4 fp4_recipe fp4_param fp4_quantizer_factory"
    ),
    "layers are chosen by what is installed": (
        "transformer_impl attention_backend moe_grouped_gemm moe_use_legacy_grouped_gemm use_te_activation_func "
        "use_te_rng_tracker"
    ),
    "qk-clip changes weights between the steps": "qk_clip qk_clip_alpha qk_clip_threshold log_max_attention_logit",
    MODEL: (
        "num_layers hidden_size ffn_hidden_size num_attention_heads num_query_groups kv_channels normalization "
        "layernorm_epsilon qk_layernorm qk_l2_norm gated_linear_unit add_bias_linear add_qkv_bias num_moe_experts "
        "moe_ffn_hidden_size moe_router_topk moe_layer_freq moe_router_pre_softmax moe_router_score_function "
        "moe_router_num_groups moe_router_group_topk moe_router_topk_limited_devices "
        "moe_router_topk_scaling_factor moe_shared_expert_intermediate_size moe_shared_expert_gate "
        "moe_shared_expert_overlap moe_apply_probs_on_input moe_latent_size window_size window_attn_skip_freq "
        "rotary_interleaved softmax_scale softmax_type layernorm_zero_centered_gamma "
        "apply_residual_connection_post_layernorm apply_query_key_layer_scaling attention_output_gate "
        "glu_linear_offset activation_func_clamp_value multi_latent_attention no_rope_freq "
        "experimental_attention_variant dsa_indexer_n_heads dsa_indexer_head_dim dsa_indexer_topk "
        "linear_attention_freq linear_conv_kernel_dim linear_key_head_dim linear_value_head_dim "
        "linear_num_key_heads linear_num_value_heads mtp_num_layers mrope_section is_hybrid_model mamba_state_dim "
        "mamba_head_dim mamba_num_groups mamba_num_heads use_mamba_mem_eff_path heterogeneous_block_specs "
        "hetereogenous_dist_checkpoint use_fused_weighted_squared_relu"
    ),
}

_OPTIMIZER = {
    "set policy.lr, prm.lr": "lr decoupled_lr",
    "set policy.min_lr, prm.min_lr": "min_lr decoupled_min_lr",
    "set policy.weight_decay, prm.weight_decay": "weight_decay",
    "set policy.adam_beta1, prm.adam_beta1": "adam_beta1",
    "set policy.adam_beta2, prm.adam_beta2": "adam_beta2",
    "set policy.adam_eps, prm.adam_eps": "adam_eps",
    "set policy.grad_clip, prm.grad_clip": "clip_grad",
    "set platform.dtype": "bf16 params_dtype",
    FP16: "fp16 loss_scale initial_loss_scale min_loss_scale loss_scale_window hysteresis",
    ADAMW: (
        "optimizer decoupled_weight_decay sgd_momentum muon_momentum muon_split_qkv muon_use_nesterov "
        "muon_scale_mode muon_fp32_matmul_prec muon_num_ns_steps muon_tp_mode muon_extra_scale_factor"
    ),
    "it is always used": "use_distributed_optimizer",
    "set overlap.param_gather": "overlap_param_gather",
    OVERLAP: "overlap_param_gather_with_optimizer_step",
    OFFLOAD: (
        "optimizer_cpu_offload optimizer_offload_fraction use_torch_optimizer_for_cpu_offload "
        "overlap_cpu_optimizer_d2h_h2d pin_cpu_grads pin_cpu_params"
    ),
    FP8: "fp8_recipe reuse_grad_buf_for_mxfp8_param_ag",
}

_DDP = {
    "it is always used": "use_distributed_optimizer",
    "gradients are always summed over ranks in fp32": (
        "grad_reduce_in_fp32 average_in_collective gradient_reduce_div_fusion"
    ),
    "set overlap.grad_reduce": "overlap_grad_reduce",
    "set overlap.param_gather": "overlap_param_gather align_param_gather",
    OVERLAP: "delay_wgrad_compute",
    "updates that are not finite are skipped and reported: set guards.max_skipped_in_a_row": (
        "check_for_nan_in_grad check_for_large_grads"
    ),
    "optimizer states are sharded over all data-parallel ranks": "num_distributed_optimizer_instances",
    NO_FSDP: (
        "use_megatron_fsdp use_custom_fsdp data_parallel_sharding_strategy suggested_communication_unit_size "
        "preserve_fp32_weights fsdp_double_buffer outer_dp_sharding_strategy fsdp_manual_registration"
    ),
    FP8: "fp8_param_gather keep_fp8_transpose_cache reuse_grad_buf_for_mxfp8_param_ag",
}

OWNED = {
    table: {name: reason for reason, names in groups.items() for name in names.split()}
    for table, groups in (("transformer", _TRANSFORMER), ("optimizer", _OPTIMIZER), ("ddp", _DDP))
}
"""Table of `[megatron]` -> field -> reason why it is not passed through."""
