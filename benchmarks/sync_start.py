"""Measure what rank 0 computes to start weight syncs in large jobs: the plan, and the layouts that receivers are sent.

    python -m benchmarks.sync_start

The layouts are computed as they are, the list of slices once for all engines and the sources for each, and as they
were, all of it for each receiver by itself; the latter for 32 receivers, scaled to all. Prints a Markdown table of
seconds of a core and MB of resident memory.
"""

import json
import time
from collections import defaultdict

import psutil

from benchmarks.reshard_layouts import LLAMA_70B, QWEN3_235B
from megatron_prime.engines.sglang.weights.bucketed_plan import BucketedPlan
from megatron_prime.resharding.layouts import EngineLayout, TrainingLayout
from megatron_prime.resharding.plan import plan_reshard

NUM_RECEIVERS = 1024
TENSOR = 8
"""Receivers of an engine."""
NUM_SAMPLED = 32
CASES = {
    "Llama-70B": (LLAMA_70B, TrainingLayout(tp=8, pp=4, dp=4), 1),
    "Qwen3-235B-A22B": (QWEN3_235B, TrainingLayout(tp=4, pp=2, dp=32, ep=16), 8),
}


def measure(shape, training, engine_experts):
    """Return seconds and MB of each step for one job."""
    engines = EngineLayout.consecutive(
        NUM_RECEIVERS // TENSOR, TENSOR, ep=engine_experts, first_rank=training.num_ranks
    )
    found = {}

    def step(name, work):
        memory, start = psutil.Process().memory_info().rss, time.process_time()
        result = work()
        found[name] = time.process_time() - start, (psutil.Process().memory_info().rss - memory) / 1e6
        return result

    plan = step("plan", lambda: BucketedPlan(plan_reshard(shape, training, engines), 256 << 20, "bfloat16"))
    step("rank 0's own slices", lambda: plan.outgoing(0))
    targets = [(engine, tp_rank) for engine in range(engines.num_engines) for tp_rank in range(TENSOR)]
    step("layouts", lambda: [json.dumps(plan.incoming(*target)) and None for target in targets])
    layouts = step(
        "layouts as before", lambda: [by_itself(plan, *target) for target in targets[:NUM_SAMPLED]]
    )
    scale = len(targets) / NUM_SAMPLED
    seconds = found["layouts as before"][0] * scale
    found["layouts as before"] = seconds, sum(map(len, layouts)) * scale / 1e6
    return found


def by_itself(plan, engine, tp_rank):
    """Return the layout of a receiver as JSON, computed without regard to the others."""
    names, buckets = {}, []
    for transfers in plan.received(engine, tp_rank):
        buckets.append(defaultdict(list))
        for transfer in transfers:
            buckets[-1][transfer.source_rank] += plan._rows(transfer, names)
    return json.dumps({"names": list(names), "buckets": [list(bucket.items()) for bucket in buckets]})


def main():
    print("| model | step | seconds | MB |\n|---|---|---|---|")
    for model, case in CASES.items():
        for step, (seconds, megabytes) in measure(*case).items():
            print(f"| {model} | {step} | {seconds:.2f} | {megabytes:.0f} |", flush=True)


if __name__ == "__main__":
    main()
