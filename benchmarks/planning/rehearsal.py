"""Rehearse every example, and compare the memory that `megatron-prime plan` predicts to that of rehearsals.

    python -m benchmarks.planning.rehearsal examples             # a rank of each stage, and neighbours: faults
    python -m benchmarks.planning.rehearsal memory 70b-first     # plan against rehearsal; without names, all of MEMORY

Needed is nothing but this repository: the models are their config.json. Responses have the longest length in
comparisons of memory, so that microbatches are full. Prints Markdown tables. A rank of a large model takes minutes.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

from megatron_prime.config.loading import load_config
from megatron_prime.planning.gpus import GIB, KNOWN
from megatron_prime.planning.memory import plan_stage
from megatron_prime.planning.planned_run import Assumptions, read_planned_run
from megatron_prime.rehearsal.processes import STAGES, chosen_ranks, rehearse
from megatron_prime.rehearsal.report import faults, misfits, planned_bytes

EXAMPLES = Path(__file__).parents[2] / "examples"
COMMON = {"rms_norm_eps": 1e-6, "tie_word_embeddings": False, "max_position_embeddings": 40960}
LLAMA_70B = COMMON | {
    "model_type": "llama",
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "rope_theta": 500000.0,
}
EXPERTS = COMMON | {
    "model_type": "qwen3_moe",
    "num_key_value_heads": 4,
    "head_dim": 128,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "norm_topk_prob": True,
    "vocab_size": 151936,
    "rope_theta": 1e6,
}
QWEN3_235B = EXPERTS | {
    "hidden_size": 4096,
    "moe_intermediate_size": 1536,
    "intermediate_size": 12288,
    "num_hidden_layers": 94,
    "num_attention_heads": 64,
}
MODELS = {
    "prime_7b": COMMON
    | {
        "model_type": "qwen2",
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
    },
    "prime_32b": COMMON
    | {
        "model_type": "qwen2",
        "hidden_size": 5120,
        "intermediate_size": 27648,
        "num_hidden_layers": 64,
        "num_attention_heads": 40,
        "num_key_value_heads": 8,
        "vocab_size": 152064,
    },
    "prime_70b": LLAMA_70B,
    "prime_70b_overlap": LLAMA_70B,
    "prime_moe": EXPERTS
    | {
        "hidden_size": 2048,
        "moe_intermediate_size": 768,
        "intermediate_size": 6144,
        "num_hidden_layers": 48,
        "num_attention_heads": 32,
    },
    "prime_tiny": COMMON
    | {
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 64,
    },
}
"""Example -> config.json of its model."""
PROMPTS = {"prime_32b": 16, "prime_70b": 16, "prime_70b_overlap": 32, "prime_moe": 32, "prime_7b": 16}
"""Prompts of a step when an example is rehearsed: each data-parallel rank has a response in every minibatch."""
ONE_MINIBATCH = ("policy.num_minibatches=1", "prm.num_minibatches=1")
ON_256 = [
    "parallel.num_processes=256",
    "parallel.tensor=4",
    "parallel.pipeline=16",
    "parallel.expert=8",
    "rollout.sglang.num_servers=1",
    "rollout.sglang.tensor=8",
    "rollout.sglang.expert=8",
    "rollout.sglang.mem_fraction=0.8",
    "trainer.prompts_per_step=8",
]
"""A layout of Qwen3-235B-A22B for 256 GPUs, with servers whose GPUs hold their shares of the weights."""
MEMORY = {
    "7b": ("prime_7b", None, 0, ["trainer.prompts_per_step=4"]),
    "32b": ("prime_32b", None, 0, ["trainer.prompts_per_step=2"]),
    "70b-first": ("prime_70b", None, 0, ["trainer.prompts_per_step=8"]),
    "70b-last": ("prime_70b", None, 3, ["trainer.prompts_per_step=8"]),
    "70b-overlap-first": ("prime_70b_overlap", None, 0, ["trainer.prompts_per_step=14"]),
    "70b-overlap-last": ("prime_70b_overlap", None, 13, ["trainer.prompts_per_step=14"]),
    "30b-a3b": ("prime_moe", None, 0, ["trainer.prompts_per_step=4"]),
    "235b-first": ("prime_moe", QWEN3_235B, 0, ON_256),
    "235b-last": ("prime_moe", QWEN3_235B, 15, ON_256),
}
"""Case -> example, another model than its own, pipeline stage, overrides."""


def run_of(example, overrides, model=None, num_processes=None, assumptions=None, folder=None):
    """Return the run of an example whose model is a config.json in a folder."""
    Path(folder, "config.json").write_text(json.dumps(model or MODELS[example]))
    config = load_config(EXAMPLES / f"{example}.toml", [f"model.path={folder}", *overrides])
    num_processes = num_processes or config.parallel.num_processes or 2 * config.parallel.min_processes
    rollout = config.rollout
    longest = Assumptions(rollout.max_prompt_tokens, rollout.max_response_tokens)
    return read_planned_run(config, num_processes, KNOWN["H100-80G"], longest if assumptions else None)


def rehearse_example(example, overrides=(), model=None, ranks=STAGES, jobs=1):
    """Rehearse ranks of an example with responses of mean length; return its row of the table, and the faults."""
    if example in PROMPTS:
        overrides = [f"trainer.prompts_per_step={PROMPTS[example]}", *overrides]
    with tempfile.TemporaryDirectory() as folder:
        run = run_of(example, overrides, model, folder=folder)
        start = time.monotonic()
        reports = rehearse(run, chosen_ranks(ranks, run.layout), jobs=jobs)
    found = [*faults(run, reports), *misfits(run, reports)]
    peak, fullest = max((memory.peak, phase) for report in reports for phase, memory in report.memory.items())
    row = (
        example,
        run.num_processes,
        len(reports),
        run.rollouts,
        f"{peak / GIB:.2f} ({fullest})",
        sum(len(calls.sequence) for report in reports for calls in report.collectives.groups.values()),
        sum(counts.waits.total() for report in reports for counts in report.counts.values()),
        len(found),
        f"{time.monotonic() - start:.0f}",
    )
    return row, found


def compare_memory(case):
    """Yield (phase, rehearsed bytes, planned bytes) of a case, and the seconds of the rehearsal last."""
    example, model, stage, overrides = MEMORY[case]
    with tempfile.TemporaryDirectory() as folder:
        run = run_of(example, [*ONE_MINIBATCH, *overrides], model, assumptions=True, folder=folder)
        (report,) = rehearse(run, [stage * run.layout.ranks_per_stage])
        if report.error:
            raise RuntimeError(report.error)
    plan = plan_stage(run, stage)
    for phase, memory in report.memory.items():
        planned = planned_bytes(plan, phase)
        if planned is not None and phase != "start":
            yield phase, memory.peak, planned
    yield "seconds", report.seconds, report.seconds


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", choices=("examples", "memory"))
    parser.add_argument("names", nargs="*")
    chosen = parser.parse_args()
    if chosen.table == "examples":
        columns = (
            "example",
            "ranks",
            "rehearsed",
            "responses",
            "most GiB of the trainer",
            "collectives",
            "host waits",
        )
        print("| " + " | ".join((*columns, "faults", "seconds")) + " |\n" + "|---" * 9 + "|")
        for example in chosen.names or MODELS:
            row, found = rehearse_example(example)
            print("| " + " | ".join(f"{cell:,}" if isinstance(cell, int) else cell for cell in row) + " |")
            for line in found:
                print(f"  {line}", flush=True)
        return
    print("| case | phase | rehearsed | plan | difference |\n|---|---|---|---|---|")
    for case in chosen.names or MEMORY:
        for phase, rehearsed, planned in compare_memory(case):
            if phase == "seconds":
                print(f"| {case} | seconds | {rehearsed:.0f} | | |", flush=True)
                continue
            difference = f"{100 * (planned / rehearsed - 1):+.1f} %"
            print(
                f"| {case} | {phase} | {rehearsed / GIB:.3f} | {planned / GIB:.3f} | {difference} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
