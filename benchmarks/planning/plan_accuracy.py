"""Compare the memory that `megatron-prime plan` predicts for small CPU runs to the memory that their tensors take.

    python -m benchmarks.planning.plan_accuracy

Three models of a family (policy, PRM, reference) are built in each layout, and the policy is updated once on full
microbatches. Measured are the storages of weights, gradients and optimizer states, and the peak of other live tensors
during the update (`live_bytes`), on the rank with the largest total. Prints a Markdown table.
"""

import json
import multiprocessing
import os
import socket
import tempfile
from pathlib import Path

import torch

from benchmarks.live_bytes import LiveBytes
from megatron_prime.config.run import PrimeConfig
from megatron_prime.models.forward import ScoringSettings
from megatron_prime.parallel.platform import select_platform
from megatron_prime.parallel.topology import build_topology
from megatron_prime.planning.gpus import KNOWN
from megatron_prime.planning.memory import plan_memory
from megatron_prime.planning.planned_run import Assumptions, read_planned_run
from megatron_prime.training.trainable import RoleSpec, Scorer, Trainable

SIZES = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 2000,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}
MODELS = {
    "qwen2": SIZES | {"model_type": "qwen2"},
    "qwen3 tied": SIZES | {"model_type": "qwen3", "head_dim": 24, "tie_word_embeddings": True},
    "llama": SIZES | {"model_type": "llama"},
    "qwen3 moe": SIZES
    | {
        "model_type": "qwen3_moe",
        "head_dim": 16,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 128,
        "norm_topk_prob": True,
    },
}
LAYOUTS = {
    "one": (1, {}),
    "dp2": (2, {}),
    "tp2+sp": (2, {"tensor": 2, "sequence_parallel": True}),
    "tp2": (2, {"tensor": 2}),
    "pp2": (2, {"pipeline": 2}),
    "ep2": (2, {"expert": 2}),
}
TOKENS = 2048
"""Tokens of a microbatch; sequences have 64 tokens of a prompt and 64 of a response."""
NUM_MICROBATCHES = 4
CASES = [
    *(("qwen2", layout, "none", "fp32") for layout in ("one", "dp2", "tp2", "tp2+sp", "pp2")),
    *(("qwen2", layout, "selective", "fp32") for layout in ("one", "tp2+sp")),
    *(("qwen2", layout, "full", "fp32") for layout in ("one", "pp2")),
    ("qwen2", "one", "none", "bf16"),
    *(("qwen3 tied", layout, "none", "fp32") for layout in ("one", "tp2+sp", "pp2")),
    ("llama", "one", "none", "fp32"),
    *(("qwen3 moe", layout, "none", "fp32") for layout in ("one", "ep2", "pp2")),
]


def config_of(folder, layout, recompute, dtype):
    """Return the configuration of a case."""
    processes, sizes = LAYOUTS[layout]
    data = processes if layout in ("dp2", "ep2") else 1
    return PrimeConfig.model_validate(
        {
            "run_dir": "unused",
            "model": {"path": folder},
            "platform": {"device": "cpu", "dtype": dtype},
            "parallel": sizes | {"num_processes": processes},
            "rollout": {"group_size": 4, "max_prompt_tokens": 64, "max_response_tokens": 64},
            "trainer": {
                "num_steps": 10,
                "prompts_per_step": data * NUM_MICROBATCHES * TOKENS // 128 // 4,
                "max_tokens_per_microbatch": TOKENS,
                "logprob_chunk_tokens": 64,
            },
            "memory": {"recompute": {"granularity": recompute}},
        }
    )


def predict(folder, layout, recompute, dtype):
    """Predict the bytes that `measure` measures on the rank with the largest total, from config.json alone."""
    config = config_of(folder, layout, recompute, dtype)
    plan = plan_memory(read_planned_run(config, LAYOUTS[layout][0], KNOWN["H100-80G"], Assumptions(64, 64)))
    held = plan.phases["policy"]
    models = sum(size for name, size in held.items() if name.split()[0] in ("policy", "prm", "reference"))
    return {"models": models, "working": held["activations"] + held["output layer"]}


def measure(folder, layout, recompute, dtype):
    """Measure the bytes of this rank; call it in every process of the job."""
    config = config_of(folder, layout, recompute, dtype)
    platform = select_platform("cpu", dtype)
    platform.start_process_group()
    topology = build_topology(platform, **LAYOUTS[layout][1])
    settings = ScoringSettings(TOKENS, config.trainer.logprob_chunk_tokens)

    def trainable(role, optimizer):
        return Trainable(RoleSpec(role, folder, settings, config.memory), topology, optimizer, 10, False)

    policy, prm = trainable("policy", config.policy), trainable("prm", config.prm)
    reference = Scorer(RoleSpec("reference", folder, settings), topology, load_weights=False)
    generator = torch.Generator().manual_seed(0)
    rows = config.trainer.prompts_per_step * 4
    sequences = [
        tuple(torch.randint(0, 2000, (64,), generator=generator).tolist() for _ in range(2))
        for _ in range(rows)
    ]
    for role in (policy, prm):
        role.update(sequences[:2], [0, 1], _loss)  # creates the optimizer states
    # Weights and gradients are counted as models, so they must not count as working memory.
    known = [*policy.built.module.parameters(), *policy._gradients()]
    with LiveBytes(known) as counted:
        policy._pass.backward(sequences, range(rows), _loss)
    models = sum(role.residency.bytes_here() for role in (policy, prm, reference))
    return {"models": models, "working": counted.peak}


def _loss(rows_b, logprobs_bT, entropy_bT):
    return (logprobs_bT.sum() + entropy_bT.sum() / 10) / 1000, {}


def _rank(rank, world_size, port, cases, root, results):
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    results.put([measure(Path(root, case[0]), *case[1:]) for case in cases])


def measure_all(cases, root):
    """Return the bytes of each case on the rank with the largest total."""
    measured = {}
    for world_size in (1, 2):
        chosen = [case for case in cases if LAYOUTS[case[1]][0] == world_size]
        if not chosen:
            continue
        # Its ranks are forks of one process that has imported torch and Megatron.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        results = context.Queue()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        ranks = [
            context.Process(target=_rank, args=(rank, world_size, port, chosen, root, results), daemon=True)
            for rank in range(world_size)
        ]
        for process in ranks:
            process.start()
        by_rank = [results.get(timeout=300) for _ in ranks]
        for process in ranks:
            process.join()
        for index, case in enumerate(chosen):
            # Ranks differ, for example in pipeline stages with and without the embedding.
            measured[case] = max((of_rank[index] for of_rank in by_rank), key=lambda r: sum(r.values()))
    return measured


def write_configs(root):
    """Write each model's config.json to a folder of its name."""
    for name, settings in MODELS.items():
        Path(root, name).mkdir()
        Path(root, name, "config.json").write_text(json.dumps(settings))


def compare(cases, root):
    """Return one (case, predicted, measured) per case."""
    write_configs(root)
    measured = measure_all(cases, root)
    return [(case, predict(Path(root, case[0]), *case[1:]), measured[case]) for case in cases]


def main():
    columns = ("model", "layout", "recompute", "dtype", "models, MiB", "working, MiB")
    ratios_of = ("plan / measured: models", "working", "all")
    print("| " + " | ".join([*columns, *ratios_of]) + " |")
    print("|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as root:
        for case, predicted, measured in compare(CASES, root):
            ratios = [predicted[name] / measured[name] for name in ("models", "working")]
            ratios.append(sum(predicted.values()) / sum(measured.values()))
            cells = [*case, *(f"{measured[name] / 2**20:.1f}" for name in ("models", "working"))]
            print("| " + " | ".join([*cells, *(f"{ratio:.3f}" for ratio in ratios)]) + " |", flush=True)


if __name__ == "__main__":
    main()
