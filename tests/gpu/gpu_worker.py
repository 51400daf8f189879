"""Functions that one process with a GPU runs in tests/gpu. They take the device, so that a CPU can run them as well."""

import json
import weakref
from pathlib import Path

import torch
from transformers import (
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from megatron_prime.cli.assemble import start_topology
from megatron_prime.config.loading import load_config
from megatron_prime.parallel.watchdog import stop_watchdog
from megatron_prime.training.checkpoint.store import CheckpointStore, RunState
from megatron_prime.training.roles import build_roles
from tests.support.layout_worker import blocks_of

SIZES = {
    "vocab_size": 512,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}
"""Sizes for FP8 and fused attention: multiples of the FP8 block size 128, and a head size of 64."""
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 128, "norm_topk_prob": True}
BUILDERS = {
    "dense": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES)),
    "qk-norm": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=64)),
    "experts": lambda: Qwen3MoeForCausalLM(Qwen3MoeConfig(**SIZES, **EXPERTS, head_dim=64)),
}
FP32 = ("platform.dtype=fp32", "platform.layers=torch")
TORCH = ("platform.dtype=bf16", "platform.layers=torch")
TE = ("platform.dtype=bf16", "platform.layers=transformer_engine")


def save_models(folder: Path) -> None:
    """Save every model of BUILDERS with random weights in a folder of its name."""
    for name, build in BUILDERS.items():
        torch.manual_seed(0)
        model = build().float()
        for parameter_name, parameter in model.named_parameters():
            torch.nn.init.normal_(parameter, mean=float("norm" in parameter_name), std=0.05)
        model.save_pretrained(folder / name)


def sequences(num_rows: int = 8):
    """Return rows of different lengths that need several microbatches."""
    generator = torch.Generator().manual_seed(1)
    return [
        tuple(
            torch.randint(0, SIZES["vocab_size"], (length,), generator=generator).tolist()
            for length in (3 + row, 40 + 11 * row % 37)
        )
        for row in range(num_rows)
    ]


def loss(rows_b, logprobs_bT, entropy_bT):
    value = -(logprobs_bT.sum() + 0.1 * entropy_bT.sum()) / 400
    return value, {"loss": value.detach()}


class Built:
    """A context manager that holds the roles of a run, built as by the command line, and stops the watchdog on exit."""

    def __init__(self, device, model, folder, *overrides):
        path = folder / "run.toml"
        path.write_text(
            f"run_dir = {json.dumps(str(folder / 'run'))}\n[model]\npath = {json.dumps(str(model))}\n"
            "[trainer]\nnum_steps = 10\nprompts_per_step = 8\nmax_tokens_per_microbatch = 192\n"
            "[rollout]\nmax_prompt_tokens = 64\nmax_response_tokens = 128\n"
            "[policy]\nlr = 1e-3\n[prm]\nlr = 1e-3\n"
        )
        self.config = load_config(path, [f"platform.device={device}", *overrides])

    def __enter__(self):
        self.topology = start_topology(self.config)
        self.models = build_roles(self.config, self.topology, load_weights=True)
        return self

    def __exit__(self, *_):
        stop_watchdog()

    def weights(self, role="policy"):
        built = getattr(self.models, role).built
        return {
            (name, start): tensor.float().cpu()
            for name, _, start, tensor in blocks_of(built.named_parameters(), built.parameters, self.topology)
        }


def scores_and_gradients(device, folder, root, model, *overrides):
    """Return log-probs, entropies and gradients by HF name of the policy, on the CPU."""
    with Built(device, folder / model, root, "prm.enabled=false", *overrides) as run:
        policy, rows = run.models.policy, sequences()
        scores = policy.score(rows)
        for chunk in policy._ddp:
            chunk.zero_grad_buffer()
        policy._pass.backward(rows, range(len(rows)), loss)
        built = policy.built
        named = {name: parameter.main_grad for name, parameter in built.named_parameters().items()}
        return {
            "logprobs": scores.logprobs_BT.cpu(),
            "entropy": scores.entropy_BT.cpu(),
            "gradients": {
                (name, start): tensor.float().cpu()
                for name, _, start, tensor in blocks_of(named, built.parameters, run.topology)
            },
            "layers": run.topology.platform.layers,
        }


def compare_layers(device, folder, root, layers=(FP32, TORCH, TE)):
    """Return the scores and gradients of each model in fp32, in bf16, and in bf16 with Transformer Engine."""
    return {
        model: [scores_and_gradients(device, folder, root, model, *overrides) for overrides in layers]
        for model in BUILDERS
    }


def try_recipes(device, folder, root, recipes):
    """Return scores and gradients of the dense model for each FP8 recipe, or the error."""
    found = {}
    for recipe in recipes:
        try:
            found[recipe] = scores_and_gradients(device, folder, root, "dense", *TE, f"fp8.policy={recipe}")
        except ValueError as error:
            stop_watchdog()
            found[recipe] = str(error)
    return found


def capability(device):
    """Return the compute capability, and the CUDA version of torch."""
    from megatron_prime.parallel.platform import select_platform

    platform = select_platform(device, "bf16")
    return platform.compute_capability, platform.cuda_version


def first_process_rewards(device, folder, root, overrides):
    """Return the largest |PRM - reference| before and after an update, for each model and setting."""
    found = {}
    for model in BUILDERS:
        for words in overrides:
            with Built(device, folder / model, root, *words) as run:
                rows = sequences()
                reference = run.models.reference.score(rows).logprobs_BT
                before = run.models.prm.score(rows).logprobs_BT
                in_update, _ = run.models.prm.update(rows, range(len(rows)), loss)
                after = run.models.prm.score(rows).logprobs_BT
                found[model, words] = [
                    (scores - reference).abs().max().item()
                    for scores in (before, in_update.logprobs_BT, after)
                ]
    return found


def checkpoints_across_layers(device, folder, root, there=TE, other=TORCH):
    """Return the results of a role that is saved and loaded with other layers, and of one that continues without."""
    found = {}
    for model in BUILDERS:
        rows, paths = sequences(), root / model
        with Built(device, folder / model, root, "prm.enabled=false", *there) as run:
            policy = run.models.policy
            policy.update(rows, range(len(rows)), loss)
            store = CheckpointStore(paths / "there", run.topology)
            path = store.save({"policy": policy}, RunState(1, {}, 0))
            written = run.weights()
            policy.update(rows, range(len(rows)), loss)
            unbroken = run.weights()
        with Built(device, folder / model, root, "prm.enabled=false", *other) as run:
            store = CheckpointStore(paths / "other", run.topology)
            store.load(path, {"policy": run.models.policy})
            in_other = run.weights()
            path = store.save({"policy": run.models.policy}, RunState(1, {}, 0))
        with Built(device, folder / model, root, "prm.enabled=false", *there) as run:
            store = CheckpointStore(paths / "back", run.topology)
            store.load(path, {"policy": run.models.policy})
            back = run.weights()
            run.models.policy.update(rows, range(len(rows)), loss)
            resumed = run.weights()
        found[model] = {
            "written": written,
            "in other": in_other,
            "back": back,
            "unbroken": unbroken,
            "resumed": resumed,
        }
    return found


def offload_steps(device, folder, root):
    """Return scores, weights and allocated bytes after three steps, with everything offloaded and with nothing."""
    offloaded = (
        "memory.offload_reference=true",
        "memory.offload_prm=true",
        "memory.offload_policy_optimizer=true",
    )
    found = []
    for words in ((), offloaded):
        with Built(device, folder / "dense", root, *TORCH, *words) as run:
            roles, rows, facts = run.models, sequences(), []
            for _ in range(3):
                facts += [roles.policy.score(rows), roles.reference.score(rows), roles.prm.score(rows)]
                with roles.prm.resident():
                    facts.append(roles.prm.update(rows, range(len(rows)), loss)[0])
                with roles.policy.resident():
                    facts.append(roles.policy.update(rows, range(len(rows)), loss)[0])
            stays = {
                name: getattr(roles, name).residency.bytes_here() for name in ("policy", "prm", "reference")
            }
            with roles.prm.resident():
                weights = run.weights("policy") | {("prm", *key): w for key, w in run.weights("prm").items()}
            logprobs = [scores.logprobs_BT.cpu() for scores in facts]
            found.append({"logprobs": logprobs, "weights": weights, "stays": stays})
    return found


def copies_in_order(device, num_bytes):
    """Offload and restore repeatedly while the stream is busy; return whether a copy ran too early."""
    from datetime import timedelta

    from megatron_prime.parallel.platform import Platform
    from megatron_prime.training.residency import Part, Residency

    platform = Platform(torch.device(device), "gloo", torch.float32, timedelta(seconds=60))
    size = 2048 if platform.is_cuda else 64
    busy = torch.randn(size, size, device=device)
    tensors = [torch.full((num_bytes // 4,), float(index), device=device) for index in range(3)]
    role = Residency(platform, {"weights": Part(lambda: tensors)}, ("weights",))
    role.park()
    correct = []
    for step in range(20):
        with role.hold():
            for tensor in tensors:
                for _ in range(5):
                    busy @ busy  # keeps the change below queued when the part is offloaded
                tensor.add_(1)
        # Overwrites the freed memory if the allocator reuses it too early.
        thieves = [
            torch.full_like(tensor, -1.0) for tensor in [torch.empty(num_bytes // 4, device=device)] * 3
        ]
        del thieves
        if step % 3 == 0:
            with role.hold():
                correct.append([bool((t == index + step + 1).all()) for index, t in enumerate(tensors)])
    return correct


def models_that_stay(folder):
    """Return the roles of a check of tools/gpu_check.py whose models still exist after its block."""
    from tools.gpu_checks.lines import Setting
    from tools.gpu_checks.roles import plain_loss, random_sequences, roles, write_shape

    setting = Setting("cpu", True, folder)
    with roles(setting, write_shape(setting, "small", with_weights=True)) as built:
        rows = random_sequences(128, 4, 4, 4)
        for role in (built.policy, built.prm):
            role.update(rows, range(4), plain_loss)
        built.reference.score(rows)
        models = {
            name: weakref.ref(getattr(built, name).built.chunks[0]) for name in ("policy", "prm", "reference")
        }
        optimizer = weakref.ref(built.policy.optimizer)
        del role
    return [name for name, model in (models | {"optimizer": optimizer}).items() if model() is not None]
