"""Whole runs of `train` on a pretended GPU; two processes run all of them, to start once."""

import json
import os
import random
from collections import Counter
from pathlib import Path

from tests.support.pretend_gpu import machine
from tests.support.pretend_gpu.findings import FOUND, Finding

NUM_STEPS = 2
# Each microbatch holds four responses of any length up to the limit, so that numbers of microbatches are fixed.
CONFIG = f"""
[model]
path = "task/model"
[platform]
device = "cuda"
dtype = "bf16"
layers = "torch"
timeout_s = 120.0
[data]
train = ["task/train.jsonl"]
instruction = ""
[reward]
verifier = "exact_match"
[rollout]
group_size = 4
max_prompt_tokens = 32
max_response_tokens = 4
[filter]
enabled = false
[trainer]
num_steps = {NUM_STEPS}
prompts_per_step = 2
max_tokens_per_microbatch = 90
logprob_kernel = "torch"
[checkpoint]
save_every = 0
export_hf = false
[policy]
num_minibatches = 2
"""
RUNS = {
    "tensor and sequence, offload, async save": [
        "parallel.tensor=2",
        "parallel.sequence_parallel=true",
        "memory.offload_reference=true",
        "memory.offload_prm=true",
        "memory.offload_policy_optimizer=true",
        "memory.recompute.granularity=selective",
        "checkpoint.async_save=true",
        "checkpoint.save_every=1",
    ],
    "pipeline and chunks": [
        "model.path=task/deep",
        "parallel.pipeline=2",
        "parallel.virtual_pipeline=2",
        "policy.kl_coef=0.1",
        "policy.entropy_coef=0.01",
        "policy.correction=token",
    ],
    "context": [
        "parallel.context=2",
        "trainer.max_tokens_per_microbatch=98",
        "prm.loss=dpo",
        "prm.granularity=step",
        "filter.overlong=penalize",
    ],
    "experts and data, overlap": [
        "model.path=task/experts",
        "parallel.expert=2",
        "overlap.grad_reduce=true",
        "overlap.param_gather=true",
        "policy.load_balance_coef=0.01",
        "prm.update_order=before",
    ],
}
"""Name -> overrides of the configuration, for two processes."""


def prepare(folder: str) -> None:
    """Write the task with a dense model and one of experts into a folder."""
    os.chdir(folder)
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

    from megatron_prime.quickstart import arithmetic_task as task
    from megatron_prime.quickstart.arithmetic import distinct_problems

    sizes = task.model_config().to_dict() | {"layer_types": None}
    deep = sizes | {"num_hidden_layers": 4}
    experts = sizes | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
    models = {
        "model": Qwen3ForCausalLM(Qwen3Config(**sizes)),
        "deep": Qwen3ForCausalLM(Qwen3Config(**deep)),
        "experts": Qwen3MoeForCausalLM(Qwen3MoeConfig(**experts | {"model_type": "qwen3_moe"})),
    }
    generator = torch.Generator().manual_seed(0)
    for name, model in models.items():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.04, generator=generator)
        # All tokens are about equally likely, so that rounding, which differs between machines, changes no sample.
        torch.nn.init.normal_(model.lm_head.weight, std=1e-5, generator=generator)
        task.write_tokenizer(Path("task", name))
        model.save_pretrained(Path("task", name))
    problems = distinct_problems(random.Random(0))
    rows = [
        {"prompt": p.text, "answer": str(p.trace()[-1])} for p, _ in zip(problems, range(32), strict=False)
    ]
    Path("task/train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("run.toml").write_text(CONFIG)


def run_all(folder: str) -> dict[str, Counter[Finding]]:
    """Return the findings of each run on this rank."""
    import torch.distributed as dist

    from tests.support.toy_worker import run

    os.chdir(folder)
    machine.install()
    found = {}
    for number, (name, overrides) in enumerate(RUNS.items()):
        with FOUND.recording() as found[name]:
            code, output = run("train", "run.toml", f"run_dir=runs/{number}", *overrides)
        assert code == 0, output
    dist.barrier()
    return found
