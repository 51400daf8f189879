"""Each argument is mapped once; conversions are compared with figures worked out by hand."""

import pytest

from megatron_prime.config.megatron.mapping import MappingKind, map_arguments

MODEL = {
    "model_type": "qwen2",
    "num_hidden_layers": 28,
    "hidden_size": 3584,
    "rope_theta": 1000000.0,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "num_key_value_heads": 4,
}


def map_one(text: str, index: int = 0):
    """Return the result for the argument at `index` of a command line."""
    arguments = {}
    for word in text.split():
        if word.startswith("--"):
            arguments[word[2:]] = []
        else:
            list(arguments.values())[-1].append(word)
    found = map_arguments(arguments, MODEL)
    assert [argument.name for argument in found] == list(arguments)
    return found[index]


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        ("--tensor-model-parallel-size 8", {"parallel.tensor": 8}),
        ("--sequence-parallel", {"parallel.sequence_parallel": True}),
        ("--lr 5e-7", {"policy.lr": 5e-7}),
        ("--lr-decay-style cosine", {"policy.lr_decay": "cosine"}),
        ("--recompute-modules mlp core_attn", {"memory.recompute.modules": ["mlp", "core_attn"]}),
        ("--save /ckpt/run 1", {"run_dir": "/ckpt/run 1"}),
        ("--bf16", {"platform.dtype": "bf16"}),
        ("--overlap-grad-reduce", {"overlap.grad_reduce": True}),
        ("--fp8-format hybrid", {"fp8.format": "hybrid", "fp8.policy": "delayed"}),
        ("--fp8-format e4m3 --fp8-recipe blockwise", {"fp8.format": "e4m3", "fp8.policy": "blockwise"}),
        ("--distributed-timeout-minutes 20", {"platform.timeout_s": 1200.0}),
        ("--seq-length 8192", {"rollout.max_prompt_tokens": 1024, "rollout.max_response_tokens": 7168}),
        ("--seq-length 2048", {"rollout.max_prompt_tokens": 512, "rollout.max_response_tokens": 1536}),
        ("--micro-batch-size 2 --seq-length 8192", {"trainer.max_tokens_per_microbatch": 16384}),
        ("--global-batch-size 256", {"trainer.prompts_per_step": 64}),
        ("--global-batch-size 256 --grpo-group-size 8", {"trainer.prompts_per_step": 32}),
        (
            "--global-batch-size 64 --grpo-group-size 8 --grpo-prompts-per-step 32",
            {"policy.num_minibatches": 4},
        ),
        (
            "--num-layers-per-virtual-pipeline-stage 2 --pipeline-model-parallel-size 7",
            {"parallel.virtual_pipeline": 2},
        ),
    ],
)
def test_settings(text, settings):
    found = map_one(text)
    assert (found.kind, found.settings) == (MappingKind.MAPPED, settings)


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        ("--ddp-bucket-size 40000000", {"megatron.ddp.bucket_size": 40000000}),
        ("--no-masked-softmax-fusion", {"megatron.transformer.masked_softmax_fusion": False}),
        ("--attention-softmax-in-fp32", {"megatron.transformer.attention_softmax_in_fp32": True}),
        ("--moe-router-dtype fp32", {"megatron.transformer.moe_router_dtype": "fp32"}),
        ("--log-num-zeros-in-grad", {"megatron.optimizer.log_num_zeros_in_grad": True}),
        ("--no-barrier-with-level-1-timing", {"megatron.transformer.barrier_with_L1_time": False}),
    ],
)
def test_fields_of_megatron_core_are_passed_through(text, settings):
    found = map_one(text)
    assert (found.kind, found.settings) == (MappingKind.PASSED, settings)


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        ("--num-layers 28", MappingKind.MODEL, "num_hidden_layers = 28"),
        ("--num-layers 32", MappingKind.FAULT, "32, but config.json has num_hidden_layers = 28"),
        ("--rotary-base 1000000", MappingKind.MODEL, "rope_theta"),
        ("--norm-epsilon 1e-5", MappingKind.FAULT, "rms_norm_eps = 1e-06"),
        ("--kv-channels 128", MappingKind.MODEL, "not compared"),
        ("--untie-embeddings-and-output-weights", MappingKind.MODEL, "tie_word_embeddings = False"),
        ("--qk-layernorm", MappingKind.FAULT, "model_type = 'qwen2'"),
        ("--use-distributed-optimizer", MappingKind.IMPLIED, "always so"),
        ("--hidden-dropout 0.0", MappingKind.IMPLIED, "always 0.0"),
        ("--hidden-dropout 0.1", MappingKind.REFUSED, "always 0 here"),
        ("--optimizer sgd", MappingKind.REFUSED, "always adam"),
        ("--lr-decay-style WSD", MappingKind.REFUSED, "constant, linear, cosine"),
        ("--delay-wgrad-compute", MappingKind.LEFT_OUT, "read and moved"),
        ("--fp8-recipe tensorwise", MappingKind.LEFT_OUT, "no FP8 without"),
        ("--fp8-recipe tensorwise --fp8-format e4m3", MappingKind.MAPPED, "fp8.policy"),
        ("--data-path 0.5 a 0.5 b", MappingKind.LEFT_OUT, "[data]"),
        ("--load /ckpt", MappingKind.LEFT_OUT, "megatron-to-hf /ckpt"),
        ("--micro-batch-size 2", MappingKind.LEFT_OUT, "tokens"),
        ("--fp16", MappingKind.REFUSED, "bf16"),
        ("--fp4-format e2m1", MappingKind.REFUSED, "FP4"),
        ("--fp8-margin 1", MappingKind.REFUSED, "fp8.policy"),
        ("--moe-expert-capacity-factor 1.0", MappingKind.REFUSED, "dropped token"),
        ("--multi-latent-attention", MappingKind.REFUSED, "describes the model"),
        ("--init-method-std 0.01", MappingKind.LEFT_OUT, "from the checkpoint"),
        ("--tensor-parallel-size 8", MappingKind.FAULT, "no such argument; did you mean"),
        ("--lrr 1", MappingKind.FAULT, "no such argument"),
        ("--ddp-bucket-size many", MappingKind.FAULT, "must be"),
        ("--global-batch-size 6", MappingKind.FAULT, "no multiple of rollout.group_size = 4"),
        ("--seq-length long", MappingKind.FAULT, "takes one number, not 'long'"),
        ("--seq-length 0", MappingKind.FAULT, "whole number from 1"),
        ("--lr $LR", MappingKind.FAULT, "known only when the script runs"),
        ("--data-path $DATA", MappingKind.LEFT_OUT, "[data]"),
        ("--num-layers-per-virtual-pipeline-stage 3", MappingKind.FAULT, "do not divide 28 layers"),
    ],
)
def test_other_mapped(text, kind, words):
    found = map_one(text)
    assert (found.kind, found.settings) == (kind, {})
    assert words in found.text
