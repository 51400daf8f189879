"""One verdict for each argument; conversions against figures worked out by hand."""

import pytest

from megatron_prime.config.megatron.mapping import Kind, judge

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


def verdict(text: str, index: int = 0):
    """On the argument at `index` of a line."""
    arguments = {}
    for word in text.split():
        if word.startswith("--"):
            arguments[word[2:]] = []
        else:
            list(arguments.values())[-1].append(word)
    found = judge(arguments, MODEL)
    assert [v.argument for v in found] == list(arguments)
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
    found = verdict(text)
    assert (found.kind, found.settings) == (Kind.MAPPED, settings)


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
    found = verdict(text)
    assert (found.kind, found.settings) == (Kind.PASSED, settings)


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        ("--num-layers 28", Kind.MODEL, "num_hidden_layers = 28"),
        ("--num-layers 32", Kind.FAULT, "32, but config.json has num_hidden_layers = 28"),
        ("--rotary-base 1000000", Kind.MODEL, "rope_theta"),
        ("--norm-epsilon 1e-5", Kind.FAULT, "rms_norm_eps = 1e-06"),
        ("--kv-channels 128", Kind.MODEL, "not compared"),
        ("--untie-embeddings-and-output-weights", Kind.MODEL, "tie_word_embeddings = False"),
        ("--qk-layernorm", Kind.FAULT, "model_type = 'qwen2'"),
        ("--use-distributed-optimizer", Kind.IMPLIED, "always so"),
        ("--hidden-dropout 0.0", Kind.IMPLIED, "always 0.0"),
        ("--hidden-dropout 0.1", Kind.REFUSED, "always 0 here"),
        ("--optimizer sgd", Kind.REFUSED, "always adam"),
        ("--lr-decay-style WSD", Kind.REFUSED, "constant, linear, cosine"),
        ("--delay-wgrad-compute", Kind.LEFT_OUT, "read and moved"),
        ("--fp8-recipe tensorwise", Kind.LEFT_OUT, "no FP8 without"),
        ("--fp8-recipe tensorwise --fp8-format e4m3", Kind.MAPPED, "fp8.policy"),
        ("--data-path 0.5 a 0.5 b", Kind.LEFT_OUT, "[data]"),
        ("--load /ckpt", Kind.LEFT_OUT, "megatron_to_hf.py /ckpt"),
        ("--micro-batch-size 2", Kind.LEFT_OUT, "tokens"),
        ("--fp16", Kind.REFUSED, "bf16"),
        ("--fp4-format e2m1", Kind.REFUSED, "FP4"),
        ("--fp8-margin 1", Kind.REFUSED, "fp8.policy"),
        ("--moe-expert-capacity-factor 1.0", Kind.REFUSED, "dropped token"),
        ("--multi-latent-attention", Kind.REFUSED, "describes the model"),
        ("--init-method-std 0.01", Kind.LEFT_OUT, "from the checkpoint"),
        ("--tensor-parallel-size 8", Kind.FAULT, "no such argument; did you mean"),
        ("--lrr 1", Kind.FAULT, "no such argument"),
        ("--ddp-bucket-size many", Kind.FAULT, "must be"),
        ("--global-batch-size 6", Kind.FAULT, "no multiple of rollout.group_size = 4"),
        ("--seq-length long", Kind.FAULT, "takes one number, not 'long'"),
        ("--seq-length 0", Kind.FAULT, "whole number from 1"),
        ("--lr $LR", Kind.FAULT, "known only when the script runs"),
        ("--data-path $DATA", Kind.LEFT_OUT, "[data]"),
        ("--num-layers-per-virtual-pipeline-stage 3", Kind.FAULT, "do not divide 28 layers"),
    ],
)
def test_other_verdicts(text, kind, words):
    found = verdict(text)
    assert (found.kind, found.settings) == (kind, {})
    assert words in found.text
