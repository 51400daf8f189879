"""Estimate the time of a weight sync in large jobs from the bytes on each link: this project's plan, and gathering.

Both use the same model: links are full duplex, all links work at the same time, and nothing else takes time. The result
is a lower bound for both methods, most optimistic for the one with more steps.
"""

import math
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.reshard_layouts import LLAMA_70B, MOE_1T, QWEN3_235B, Case
from megatron_prime.hf.mapping import hf_tensors
from megatron_prime.resharding.layouts import EngineLayout, TrainingLayout
from megatron_prime.resharding.plan import plan_reshard
from megatron_prime.resharding.summary import summary

RANKS_PER_NODE = 8
NVLINK_BYTES_PER_S = 400e9
NIC_BYTES_PER_S = 46e9


def cases() -> Iterator[Case]:
    """Yield each model with engines on all its GPUs, and with half of the GPUs reserved for engines."""
    unequal = (15, 15, 15, 16)
    yield Case("Llama-70B", LLAMA_70B, TrainingLayout(tp=8, pp=4, dp=4), EngineLayout.consecutive(16, 8))
    yield Case(
        "Llama-70B",
        LLAMA_70B,
        TrainingLayout(tp=8, pp=4, dp=2),
        EngineLayout.consecutive(8, 8, first_rank=64),
    )
    yield Case(
        "Qwen3-235B-A22B",
        QWEN3_235B,
        TrainingLayout(tp=4, pp=2, dp=32, ep=16),
        EngineLayout.consecutive(32, 8, ep=8),
    )
    yield Case(
        "Qwen3-235B-A22B",
        QWEN3_235B,
        TrainingLayout(tp=4, pp=2, dp=16, ep=16),
        EngineLayout.consecutive(16, 8, ep=8, first_rank=128),
    )
    yield Case(
        "1T MoE",
        MOE_1T,
        TrainingLayout(tp=8, pp=4, dp=32, ep=64, layers_per_stage=unequal),
        EngineLayout.consecutive(32, 32, ep=32),
    )
    yield Case(
        "1T MoE",
        MOE_1T,
        TrainingLayout(tp=8, pp=4, dp=16, ep=64, layers_per_stage=unequal),
        EngineLayout.consecutive(16, 32, ep=32, first_rank=512),
    )


def simulate(case: Case) -> dict[str, Any]:
    """Return planning time, bytes on the links and seconds of one case, in bf16 unless stated otherwise."""
    start = time.perf_counter()
    plan = plan_reshard(case.shape, case.training, case.engines, ranks_per_node=RANKS_PER_NODE)
    planning_s = time.perf_counter() - start
    counted = summary(plan)
    fp8 = plan_reshard(
        case.shape, case.training, case.engines, bytes_per_element=1, ranks_per_node=RANKS_PER_NODE
    )
    gathered = gather_everything(case)
    num_senders = case.training.num_ranks
    num_receivers = case.engines.num_engines * case.engines.tp
    return {
        "model": case.name,
        "gpus": case.num_gpus,
        "placement": "colocated" if case.is_colocated else "disaggregated",
        "planning_s": planning_s,
        "transfers": sum(flow.num_slices for flow in plan.flows),
        "ratio": counted.network_bytes / max(1, counted.lower_bound_bytes),
        "nic_sent_gb": _max_and_mean(counted.nic_sent_bytes_by_rank, num_senders),
        "nic_received_gb": _max_and_mean(counted.nic_received_bytes_by_rank, num_receivers),
        "nvlink_gb": counted.node_bytes / case.num_gpus / 1e9,
        "local_gb": counted.local_bytes / num_receivers / 1e9,
        "seconds": counted.seconds(NIC_BYTES_PER_S, NVLINK_BYTES_PER_S),
        "seconds_fp8": summary(fp8).seconds(NIC_BYTES_PER_S, NVLINK_BYTES_PER_S),
        "gather": gathered,
    }


def gather_everything(case: Case) -> dict[str, float]:
    """Return the cost of gathering the whole model on every training rank, and whole tensors on every engine GPU.

    Each TP shard is broadcast over PP between nodes and all-gathered over TP within them; every expert is broadcast to
    all ranks. Engines on other GPUs receive all tensors whole, by a pipelined broadcast between nodes.
    """
    training = case.training
    total = 2.0 * sum(math.prod(dims) for dims in hf_tensors(case.shape).values())
    experts = 2.0 * sum(math.prod(d) for name, d in hf_tensors(case.shape).items() if ".experts." in name)
    dense = total - experts
    if case.is_colocated:
        # Share of the experts that a GPU receives from its own node, over NVLink.
        on_node = min(RANKS_PER_NODE, training.ep * training.etp) / (training.ep * training.etp * training.pp)
        nic = dense / training.tp * (training.pp - 1) / training.pp + experts * (1 - on_node)
        nvlink = dense * (training.tp - 1) / training.tp + experts * on_node
    else:
        # Other GPUs receive every tensor over their NIC; only the training side gathers over NVLink.
        nic, nvlink = total, dense / training.pp
    return {
        "nic_received_gb": nic / 1e9,
        "nvlink_received_gb": nvlink / 1e9,
        "seconds": max(nic / NIC_BYTES_PER_S, nvlink / NVLINK_BYTES_PER_S),
    }


def _max_and_mean(by_rank: dict[int, int], num_ranks: int) -> tuple[float, float]:
    return max(by_rank.values(), default=0) / 1e9, sum(by_rank.values()) / num_ranks / 1e9
