"""A small run with TP2, PP2 and DP2 on CPUs, to be rehearsed and to be run for real with the same recorders."""

import json
import os
from pathlib import Path

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from megatron_prime.config.run import PrimeConfig
from megatron_prime.parallel.pipeline_messages import connect_stages
from megatron_prime.parallel.platform import select_platform
from megatron_prime.parallel.topology import configured_topology
from megatron_prime.planning.gpus import KNOWN
from megatron_prime.planning.planned_run import Assumptions, read_planned_run
from megatron_prime.rehearsal import world
from megatron_prime.rehearsal.collectives import KINDS, CollectiveRecord, Group, call_of
from megatron_prime.rehearsal.ledger import Ledger
from megatron_prime.rehearsal.rank import train_steps
from megatron_prime.rehearsal.values import tensors_in

MODEL = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 8,
    "vocab_size": 500,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}
MIXTURE = MODEL | {
    "model_type": "qwen3_moe",
    "num_hidden_layers": 1,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "norm_topk_prob": True,
}
NUM_RANKS = 8


def small_run(folder, num_ranks=NUM_RANKS, gpu=KNOWN["H100-80G"], model=MODEL, **sections):
    """Return the run; `sections` are merged into its configuration."""
    Path(folder, "config.json").write_text(json.dumps(model))
    tables = {
        "run_dir": "unused",
        "model": {"path": folder},
        "platform": {"device": "cpu"},
        "parallel": {"tensor": 2, "pipeline": 2, "sequence_parallel": True, "num_processes": num_ranks},
        "rollout": {"group_size": 4, "max_prompt_tokens": 32, "max_response_tokens": 96},
        "trainer": {"num_steps": 4, "prompts_per_step": 8, "max_tokens_per_microbatch": 256},
        "memory": {"offload_prm": True, "offload_reference": True, "offload_policy_optimizer": True},
        "policy": {"num_minibatches": 2},
    }
    for name, section in sections.items():
        tables[name] = tables.get(name, {}) | section
    config = PrimeConfig.model_validate(tables)
    return read_planned_run(config, num_ranks, gpu, Assumptions(16, 48))


class Seen(TorchDispatchMode):
    """Shows the ledger every tensor that an operation returns."""

    def __init__(self, ledger):
        super().__init__()
        self._ledger = ledger

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tensors_in((result,)):
            self._ledger.see(tensor.untyped_storage())
        return result


def record_groups(record):
    """Record the calls of this process on all real groups from now on."""

    def recorded(name, method):
        def call(group, *args, **named):
            described = Group(group.group_desc, tuple(dist.get_process_group_ranks(group)))
            record.note(described, call_of(name, described, [*args, *named.values()]))
            return method(group, *args, **named)

        return call

    for name in KINDS:
        if hasattr(dist.ProcessGroup, name):
            setattr(dist.ProcessGroup, name, recorded(name, getattr(dist.ProcessGroup, name)))


def real_rank(folder):
    """Run this rank for real; return its calls by ranks of the group, and its phases' memory."""
    # Every rank writes the model's configuration, so each needs a folder of its own.
    own = Path(folder, os.environ["RANK"])
    own.mkdir()
    run = small_run(own)
    platform = select_platform("cpu")
    platform.start_process_group()
    record = CollectiveRecord()
    record_groups(record)
    topology = configured_topology(platform, run.config.parallel, run.config.seed)
    connect_stages(topology)
    ledger = Ledger("cpu", world.current_phase, world.current_place)
    world.follow_resizes(ledger, torch.device("cpu"))
    with Seen(ledger):
        train_steps(run, topology, ledger, 1)
    return calls_by_ranks(record), ledger.phases


def calls_by_ranks(record):
    """Return (ranks of a group) -> calls, of all groups of these ranks."""
    calls = {}
    for group, each in record.groups.items():
        if len(group.ranks) > 1 and each.sequence:
            calls.setdefault(group.ranks, []).append(each.sequence)
    return {ranks: sorted(sequences, key=str) for ranks, sequences in calls.items()}
