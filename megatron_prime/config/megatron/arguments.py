"""Megatron-LM's command-line arguments (release core_v0.16.1) and their meaning for a run of PRIME.

The tables hold names only: an argument that is not here may still be a field of megatron-core's configuration classes,
which `mapping` looks up. An argument that affects only speed, or that a run replaces by other means, is left out with
the reason; one without which a run would compute something else is refused.
"""

MAPPED = {
    "tensor-model-parallel-size": "parallel.tensor",
    "pipeline-model-parallel-size": "parallel.pipeline",
    "context-parallel-size": "parallel.context",
    "expert-model-parallel-size": "parallel.expert",
    "expert-tensor-parallel-size": "parallel.expert_tensor",
    "num-virtual-stages-per-pipeline-rank": "parallel.virtual_pipeline",
    "sequence-parallel": "parallel.sequence_parallel",
    "lr": "policy.lr",
    "min-lr": "policy.min_lr",
    "lr-decay-style": "policy.lr_decay",
    "lr-warmup-iters": "policy.lr_warmup_steps",
    "weight-decay": "policy.weight_decay",
    "clip-grad": "policy.grad_clip",
    "adam-beta1": "policy.adam_beta1",
    "adam-beta2": "policy.adam_beta2",
    "adam-eps": "policy.adam_eps",
    "moe-aux-loss-coeff": "policy.load_balance_coef",
    "recompute-granularity": "memory.recompute.granularity",
    "recompute-method": "memory.recompute.method",
    "recompute-num-layers": "memory.recompute.num_layers",
    "recompute-modules": "memory.recompute.modules",
    "save": "run_dir",
    "save-interval": "checkpoint.save_every",
    "async-save": "checkpoint.async_save",
    "overlap-grad-reduce": "overlap.grad_reduce",
    "overlap-param-gather": "overlap.param_gather",
    "tp-comm-overlap": "overlap.tensor_parallel",
    "fp8-amax-history-len": "fp8.amax_history_len",
    "fp8-amax-compute-algo": "fp8.amax_compute_algo",
    "num-layers-at-start-in-bf16": "fp8.bf16_layers_at_start",
    "num-layers-at-end-in-bf16": "fp8.bf16_layers_at_end",
    "seed": "seed",
    "train-iters": "trainer.num_steps",
    "eval-interval": "trainer.eval_every",
    "grpo-prompts-per-step": "trainer.prompts_per_step",
    "grpo-group-size": "rollout.group_size",
    "grpo-clamp-eps-lower": "policy.clip_low",
    "grpo-clamp-eps-upper": "policy.clip_high",
    "grpo-kl-beta": "policy.kl_coef",
    "grpo-entropy-term-weight": "policy.entropy_coef",
    "rl-default-temperature": "rollout.temperature",
    "rl-default-top-p": "rollout.top_p",
    "rl-importance-sampling-truncation-coef": "policy.correction_high",
}
"""Argument -> our option of the same value; `mapping` converts those that need arithmetic."""

CONVERTED = (
    "bf16",
    "distributed-timeout-minutes",
    "recompute-activations",
    "fp8-format",
    "fp8-recipe",
    "global-batch-size",
    "micro-batch-size",
    "seq-length",
    "num-layers-per-virtual-pipeline-stage",
)
"""Arguments whose value is converted to the value of an option."""

MODEL = {
    "num-layers": "num_hidden_layers",
    "hidden-size": "hidden_size",
    "ffn-hidden-size": "intermediate_size",
    "num-attention-heads": "num_attention_heads",
    "num-query-groups": "num_key_value_heads",
    "kv-channels": "head_dim",
    "max-position-embeddings": "max_position_embeddings",
    "vocab-size": "vocab_size",
    "rotary-base": "rope_theta",
    "norm-epsilon": "rms_norm_eps",
    "num-experts": "num_experts num_local_experts",
    "moe-router-topk": "num_experts_per_tok",
    "moe-ffn-hidden-size": "moe_intermediate_size",
}
"""Argument -> keys of config.json with the same meaning; the values are compared."""

MODEL_FLAGS = {
    "swiglu": ("hidden_act", ("silu",)),
    "untie-embeddings-and-output-weights": ("tie_word_embeddings", (False,)),
    "add-qkv-bias": ("model_type", ("qwen2",)),
    "qk-layernorm": ("model_type", ("qwen3", "qwen3_moe")),
    "disable-bias-linear": ("mlp_bias", (False, None)),
    "group-query-attention": ("num_key_value_heads", None),
    "moe-router-pre-softmax": ("norm_topk_prob", (False,)),
}
"""Flag -> key of config.json and its values with the same meaning; None accepts any value."""

# Other values of these are refused, because a run could not follow them.
IMPLIED = {
    "use-distributed-optimizer": "",
    "use-mcore-models": "",
    "accumulate-allreduce-grads-in-fp32": "",
    "calculate-per-token-loss": "",
    "variable-seq-lengths": "",
    "use-rotary-position-embeddings": "",
    "perform-rl-step": "",
    "attention-dropout": "0",
    "hidden-dropout": "0",
    "optimizer": "adam",
    "position-embedding-type": "rope",
    "rotary-percent": "1",
    "normalization": "RMSNorm",
    "use-dist-ckpt": "",
    "dist-ckpt-format": "torch_dist",
    "rl-use-sequence-packing": "",
    "moe-token-dispatcher-type": "alltoall",
    "moe-router-load-balancing-type": "seq_aux_loss aux_loss none",
    "moe-router-score-function": "softmax",
    "exit-signal-handler": "",
    "log-throughput": "",
    "check-for-nan-in-loss": "",
}
"""Argument -> values, separated by spaces, that every run or model has anyway; an empty text stands for any value."""

# Megatron-LM's parser derives most fields of megatron-core from arguments of the same name; these are the exceptions.
RENAMED = {
    "ddp-bucket-size": ("ddp", "bucket_size"),
    "ddp-pad-buckets-for-high-nccl-busbw": ("ddp", "pad_buckets_for_high_nccl_busbw"),
    "ddp-reduce-scatter-with-fp32-accumulation": ("ddp", "reduce_scatter_with_fp32_accumulation"),
    "ddp-average-in-collective": ("ddp", "average_in_collective"),
    "use-nccl-ub": ("ddp", "nccl_ub"),
    "grad-reduce-in-bf16": ("ddp", "grad_reduce_in_fp32"),
    "no-rope-fusion": ("transformer", "apply_rope_fusion"),
    "no-bias-swiglu-fusion": ("transformer", "bias_activation_fusion"),
    "no-bias-gelu-fusion": ("transformer", "bias_activation_fusion"),
    "no-overlap-p2p-communication": ("transformer", "overlap_p2p_comm"),
    "overlap-p2p-communication-warmup-flush": ("transformer", "overlap_p2p_comm_warmup_flush"),
    "microbatch-group-size-per-virtual-pipeline-stage": ("transformer", "microbatch_group_size_per_vp_stage"),
    "no-barrier-with-level-1-timing": ("transformer", "barrier_with_L1_time"),
    "no-initialization": ("transformer", "perform_initialization"),
    "te-rng-tracker": ("transformer", "use_te_rng_tracker"),
    "fp8-param-gather": ("transformer", "fp8_param"),
    "fp4-format": ("transformer", "fp4"),
    "fp4-param-gather": ("transformer", "fp4_param"),
    "muon-no-split-qkv": ("optimizer", "muon_split_qkv"),
    "no-pin-cpu-grads": ("optimizer", "pin_cpu_grads"),
    "no-pin-cpu-params": ("optimizer", "pin_cpu_params"),
    "disable-mamba-mem-eff-path": ("transformer", "use_mamba_mem_eff_path"),
}
"""Argument -> table and field of megatron-core, where the names differ. The prefix no- switches the field off."""

# Arguments that affect only speed are left out with a reason; a script with hundreds of them must still convert (ADR
# 0019).
_LEFT_OUT = {
    "prompts come from [data], and are packed": (
        "data-path split train-data-path valid-data-path test-data-path data-args-path per-split-data-args-path "
        "per-dataset-sequences-path data-cache-path mock-data num-workers num-dataset-builder-threads "
        "dataloader-type dataloader-fast-cache-load dataloader-defer-npy-index-mmap no-mmap-bin-files "
        "mid-level-dataset-surplus object-storage-cache-path phase-transition-iterations sample-rate mask-prob "
        "short-seq-prob reset-position-ids reset-attention-mask eod-mask-loss no-data-sharding "
        "no-create-attention-mask-in-dataloader allow-ambiguous-pad-tokens encoder-seq-length decoder-seq-length "
        "fim-data fim-rate fim-spm-rate fim-split-sample fim-fragment-rate fim-no-prefix fim-prefix-token "
        "fim-middle-token fim-suffix-token fim-pad-token fim-eod-token iterations-to-skip sft "
        "sft-tokenizer-prompt-format rl-skip-bos-token full-validation multiple-validation-sets iter-per-epoch"
    ),
    "the tokenizer is the one in model.path": (
        "tokenizer-type tokenizer-model tokenizer-metadata tokenizer-special-tokens legacy-tokenizer vocab-file "
        "merge-file vocab-extra-ids tiktoken-pattern tiktoken-num-special-tokens tiktoken-special-tokens "
        "tokenizer-sentencepiece-legacy tokenizer-hf-use-fast tokenizer-hf-include-special-tokens "
        "trust-remote-code use-tokenizer-model-from-checkpoint-args save-tokenizer-assets"
    ),
    "the embedding is padded as the layout needs": "make-vocab-size-divisible-by padded-vocab-size",
    "metrics are in run_dir/metrics.jsonl and run_dir/tensorboard": (
        "log-interval log-params-norm log-progress timing-log-level timing-log-option tensorboard-dir "
        "tensorboard-log-interval tensorboard-queue-size log-timers-to-tensorboard "
        "log-loss-scale-to-tensorboard log-validation-ppl-to-tensorboard log-memory-to-tensorboard "
        "log-memory-interval log-device-memory-used log-max-attention-logit log-world-size-to-tensorboard "
        "log-energy log-throughput-to-tensorboard log-l2-norm-grad-to-tensorboard "
        "log-runtime-to-tensorboard throughput-window-size runtime-time-unit memory-keys wandb-project "
        "wandb-exp-name wandb-save-dir wandb-entity logging-level filter-warnings modules-to-filter "
        "set-level-for-all-loggers save-config-filepath no-one-logger one-logger-project one-logger-run-name "
        "one-logger-async app-tag-run-name app-tag-run-version langrl-env-config dump-param-to-param-group-map"
    ),
    "profile with tools of your own": (
        "profile use-nsys-profiler profile-step-start profile-step-end use-pytorch-profiler profile-ranks "
        "record-memory-history memory-snapshot-path record-shapes nvtx-ranges run-workload-inspector-server"
    ),
    "guards, watchdog, checkpoints and the job's script answer faults; see docs/cluster.md": (
        "inprocess-restart inprocess-max-iterations inprocess-monitor-thread-interval "
        "inprocess-monitor-process-interval inprocess-progress-watchdog-interval inprocess-heartbeat-interval "
        "inprocess-soft-timeout inprocess-hard-timeout inprocess-heartbeat-timeout inprocess-barrier-timeout "
        "inprocess-completion-timeout inprocess-last-call-wait inprocess-termination-grace-time "
        "inprocess-granularity inprocess-active-world-size inprocess-empty-cuda-cache enable-ft-package "
        "calc-ft-timeouts ft-num-warmup-iters rerun-mode error-injection-rate error-injection-type "
        "result-rejected-tracker-filename check-for-spiky-loss no-check-for-nan-in-loss-and-grad "
        "check-for-large-grads log-straggler straggler-ctrlr-port straggler-minmax-count "
        "disable-straggler-on-startup exit-interval exit-duration-in-mins exit-signal "
        "exit-signal-handler-for-dataloader adlr-autoresume adlr-autoresume-interval "
        "check-weight-hash-across-dp-replicas-interval distributed-timeout-seconds-after-init"
    ),
    "a run continues by itself from run_dir, and keeps what [checkpoint] says": (
        "save-retain-interval save-wgrads-interval save-dgrads-interval most-recent-k save-optim save-rng load-optim "
        "load-rng no-save-optim no-save-rng no-load-optim no-load-rng load-main-params-from-ckpt finetune "
        "ckpt-step use-checkpoint-args use-mp-args-from-checkpoint-args no-use-tokenizer-model-from-checkpoint-args "
        "exit-on-missing-checkpoint ckpt-format auto-detect-ckpt-format ckpt-convert-format ckpt-convert-save "
        "ckpt-convert-update-legacy-dist-opt-format use-persistent-ckpt-worker ckpt-fully-parallel-save "
        "ckpt-fully-parallel-load ckpt-assume-constant-structure strict-fsdp-dtensor-load dist-ckpt-strictness "
        "dist-ckpt-save-pre-mcore-014 dist-ckpt-optim-fully-reshardable "
        "distrib-optim-fully-reshardable-mem-efficient replication replication-jump replication-factor "
        "non-persistent-save-interval non-persistent-ckpt-type non-persistent-global-ckpt-dir "
        "non-persistent-local-ckpt-dir non-persistent-local-ckpt-algo disable-msc no-ckpt-fully-parallel-save"
    ),
    "processes are started by Slurm, torchrun or megatron-prime itself": (
        "nnodes nproc-per-node nproc_per_node node-rank node_rank master-addr master_addr master-port master_port "
        "rdzv-backend rdzv_backend rdzv-endpoint rdzv_endpoint rdzv-id rdzv_id rdzv-conf rdzv_conf max-restarts "
        "max_restarts standalone local-rank local-ranks-filter redirects tee log-dir log_dir module no-python "
        "distributed-backend disable-gloo-process-groups high-priority-stream-groups lazy-mpu-init use-sharp "
        "sharp-enabled-group nccl-communicator-config-path create-all-gather-group fake-process-group "
        "no-scatter-gather-tensors-in-pipeline"
    ),
    "rollouts come from the engine of [rollout], evaluation from [evaluation]": (
        "eval-iters skip-train test-mode rl-prompts-per-eval rl-default-top-k rl-parallel-generation-tasks "
        "rl-partial-rollouts rl-inference-logprobs-is-correction rl-inference-tensor-model-parallel-size "
        "rl-inference-pipeline-model-parallel-size rl-inference-expert-model-parallel-size "
        "rl-inference-expert-tensor-model-parallel-size rl-inference-model-unified-memory-level "
        "rl-offload-inference-model-weights-when-idle rl-offload-kv-cache-during-training "
        "rl-remove-kv-cache-during-training rl-reset-cuda-graphs rl-training-cuda-graphs "
        "rl-verify-model-weights-swap refit-method langrl-inference-server-type langrl-external-server "
        "langrl-inference-server-conversation-template inference-batch-times-seqlen-threshold max-tokens-to-oom "
        "use-legacy-static-engine inference-max-requests inference-max-seq-length inference-max-batch-size "
        "inference-dynamic-batching inference-dynamic-batching-buffer-size-gb "
        "inference-dynamic-batching-paused-buffer-size-gb inference-dynamic-batching-block-size "
        "inference-dynamic-batching-max-requests inference-dynamic-batching-max-tokens "
        "inference-dynamic-batching-num-cuda-graphs inference-dynamic-batching-track-paused-request-events "
        "inference-dynamic-batching-unified-memory-level inference-dynamic-batching-cuda-graph-max-tokens "
        "inference-dynamic-batching-cuda-graph-mixed-prefill-count decode-only-cuda-graphs "
        "nccl-all-reduce-for-prefill enable-chunked-prefill disable-chunked-prefill cache-mla-latents "
        "inference-logging-step-interval inference-wandb-logging inference-coordinator-port "
        "moe-pad-experts-for-cuda-graph-inference"
    ),
    "microbatches are filled by tokens: trainer.max_tokens_per_microbatch": (
        "rampup-batch-size decrease-batch-size-if-needed rl-sequence-packing-max-sequences-per-bin "
        "rl-sequence-packing-algo"
    ),
    "a decay is as long as the run, a warm-up is lr-warmup-iters": (
        "train-samples lr-decay-iters lr-decay-samples lr-decay-steps lr-warmup-fraction lr-warmup-samples "
        "lr-warmup-steps lr-warmup-init lr-wsd-decay-iters lr-wsd-decay-samples lr-wsd-decay-style wsd-decay-steps "
        "override-opt-param-scheduler use-checkpoint-opt-param-scheduler warmup"
    ),
    "[memory] says what leaves the device by phase": (
        "rl-offload-optimizer-during-inference empty-unused-memory-level manual-gc manual-gc-interval manual-gc-eval"
    ),
    "layers and kernels are chosen by what is installed": (
        "use-flash-attn attention-backend disable-jit-fuser transformer-impl tp-comm-overlap-cfg onnx-safe"
    ),
    "weights come from the checkpoint": "init-method-xavier-uniform data-parallel-random-init",
    "ranks are in Megatron's default order": "use-tp-pp-dp-mapping",
    "a speed setting of Megatron-LM's own loop": (
        "train-sync-interval no-align-grad-reduce ddp-num-buckets enable-experimental"
    ),
    "filter.accuracy_min and filter.accuracy_max say which prompts are kept": (
        "grpo-filter-groups-with-same-reward"
    ),
    "policy.num_epochs and policy.num_minibatches divide a step into updates": "grpo-iterations",
}

# Leaving these out silently would change results, so the command stops unless --skip-refused is given (ADR 0019).
_REFUSED = {
    "training is in fp32 or bf16": "fp16 fp16-lm-cross-entropy",
    "a learning rate of its own for the output layer is not supported": "decoupled-lr decoupled-min-lr",
    "weight decay is constant": (
        "start-weight-decay end-weight-decay weight-decay-incr-style wd-incr-steps no-weight-decay-cond-type"
    ),
    "FP4 and recipes by layer are not supported": "te-precision-config-file kitchen-config-file kitchen-recipe-number",
    "weights are not sharded over data-parallel ranks (FSDP)": (
        "use-torch-fsdp2 torch-fsdp2-no-reshard-after-forward enable-full-sharding-in-hsdp"
    ),
    "set parallel.stage_layers": ("decoder-first-pipeline-num-layers decoder-last-pipeline-num-layers"),
    "the model is not of a supported family": (
        "encoder-num-layers decoder-num-layers relative-attention-num-buckets relative-attention-max-distance "
        "rotary-seq-len-interpolation-factor no-position-embedding openai-gelu squared-relu quick-geglu "
        "bert-no-binary-head output-bert-embeddings bert-embedder-type apply-layernorm-1p q-lora-rank kv-lora-rank "
        "qk-head-dim qk-pos-emb-head-dim v-head-dim rotary-scaling-factor mscale mscale-all-dim rope-type "
        "heterogeneous-layers-config-path heterogeneous-layers-config-encoded-json spec hybrid-attention-ratio "
        "hybrid-mlp-ratio hybrid-override-pattern moe-use-upcycling moe-upcycling-granularity use-legacy-models "
        "ict-head-size biencoder-projection-dim biencoder-shared-query-context-model ict-load bert-load "
        "titles-data-path query-in-block-prob use-one-sent-docs evidence-data-path "
        "retriever-report-topk-accuracies retriever-score-scaling block-data-path embedding-path "
        "indexer-batch-size indexer-log-interval num-classes img-h img-w num-channels patch-dim classes-fraction "
        "data-per-class-fraction head-lr-mult vision-pretraining vision-pretraining-type vision-backbone-type "
        "swin-backbone-type mask-type mask-factor dino-local-img-size dino-local-crops-number "
        "dino-head-hidden-size dino-bottleneck-size dino-freeze-last-layer dino-norm-last-layer "
        "dino-warmup-teacher-temp dino-teacher-temp dino-warmup-teacher-temp-epochs"
    ),
    "config.json says how positions are scaled": "use-rope-scaling rope-scaling-factor",
    "Megatron-LM has withdrawn it": "batch-size checkpoint-activations model-parallel-size",
    "read the file that it names by --args-file": "yaml-cfg",
}

LEFT_OUT = {name: reason for reason, names in _LEFT_OUT.items() for name in names.split()}
"""Argument -> what replaces it; a run computes the same without it."""

REFUSED = {name: reason for reason, names in _REFUSED.items() for name in names.split()}
"""Argument -> reason why a run that ignored it would compute something else."""
