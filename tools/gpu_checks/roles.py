"""Models for the checks: random weights in the shapes of public models, and roles built as a run builds them."""

import gc
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from megatron_prime.cli.assemble import start_topology
from megatron_prime.config.loading import load_config
from megatron_prime.config.run import PrimeConfig
from megatron_prime.parallel.topology import Topology
from megatron_prime.parallel.watchdog import stop_watchdog
from megatron_prime.training.roles import build_roles
from tools.gpu_checks.lines import Setting

COMMON = {"rms_norm_eps": 1e-6, "hidden_act": "silu", "tie_word_embeddings": True}
TINY: dict[str, Any] = COMMON | {
    "model_type": "qwen3",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 128,
    "max_position_embeddings": 256,
}
EXPERTS = {
    "model_type": "qwen3_moe",
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "norm_topk_prob": True,
    "tie_word_embeddings": False,
}
SMALL = {
    "hidden_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "vocab_size": 1024,
    "max_position_embeddings": 4096,
}
SHAPES: dict[str, dict[str, Any]] = {
    "small": TINY | SMALL | {"intermediate_size": 1536},
    "experts": TINY | EXPERTS | SMALL | {"moe_intermediate_size": 512, "num_experts": 8},
    "qwen2.5-0.5b": COMMON
    | {
        "model_type": "qwen2",
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "max_position_embeddings": 32768,
        "rope_theta": 1000000.0,
    },
    "qwen2.5-1.5b": COMMON
    | {
        "model_type": "qwen2",
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "max_position_embeddings": 32768,
        "rope_theta": 1000000.0,
    },
    "llama-3.2-3b": COMMON
    | {
        "model_type": "llama",
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 28,
        "num_attention_heads": 24,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    },
}
"""Values of the models' public config.json; "small" and "experts" are not shapes of public models."""
DRAWN_IN_FP32 = ("small", "experts")
ARCHITECTURES = {
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "llama": "LlamaForCausalLM",
}
"""Value of `architectures` in config.json, which SGLang needs."""
FP8_RECIPES = ("delayed", "tensorwise", "blockwise", "mxfp8")
SHORT_RECIPE = "tensorwise"
"""The one recipe that is measured where minutes are scarce."""
Sequences = list[tuple[list[int], list[int]]]


@dataclass
class Roles:
    """The models that `roles` builds. It removes them at the end of its block, even if the caller keeps this object."""

    config: PrimeConfig
    topology: Topology
    policy: Any
    prm: Any
    reference: Any


def write_shape(setting: Setting, name: str, with_weights: bool = False) -> Path:
    """Write config.json of a shape (of TINY in a tiny setting), and random weights if asked; return the folder."""
    folder = setting.folder / f"model {name}"
    if folder.exists():
        return folder
    tiny = TINY | (EXPERTS if name == "experts" else {})
    values = tiny if setting.is_tiny else SHAPES[name]
    folder.mkdir(parents=True)
    if with_weights:
        from transformers import AutoConfig, AutoModelForCausalLM

        torch.manual_seed(0)
        shape = AutoConfig.for_model(
            values["model_type"], **{k: v for k, v in values.items() if k != "model_type"}
        )
        dtype = torch.float32 if name in DRAWN_IN_FP32 else torch.bfloat16
        AutoModelForCausalLM.from_config(shape, dtype=dtype).save_pretrained(folder)
    else:
        named = values | {"architectures": [ARCHITECTURES[values["model_type"]]]}
        (folder / "config.json").write_text(json.dumps(named, indent=1))
    return folder


def make_config(setting: Setting, model: Path, *overrides: str) -> PrimeConfig:
    """Return a run's configuration for this device. Raises ConfigError, which is a ValueError."""
    path = setting.folder / "check.toml"
    path.write_text(
        f"run_dir = {json.dumps(str(setting.folder / 'run'))}\n"
        f"[model]\npath = {json.dumps(str(model))}\n"
        "[trainer]\nnum_steps = 1000\nprompts_per_step = 8\nmax_tokens_per_microbatch = 4096\n"
        "[rollout]\ngroup_size = 4\nmax_prompt_tokens = 512\nmax_response_tokens = 1024\n"
    )
    return load_config(path, [f"platform.device={setting.device}", *overrides])


@contextmanager
def roles(setting: Setting, model: Path, *overrides: str, load_weights: bool = True) -> Iterator[Roles]:
    """Build policy, PRM and reference as a training run does; their memory is released at the end of the block.

    Raises ValueError if the configuration needs something that this machine does not have.
    """
    gc.collect()  # If the previous configuration failed, the traceback kept its models until now.
    config = make_config(setting, model, *overrides)
    topology = start_topology(config)
    found = Roles(config, topology, None, None, None)
    try:
        built = build_roles(config, topology, load_weights)
        found.policy, found.prm, found.reference = built.policy, built.prm, built.reference
        del built
        yield found
    finally:
        stop_watchdog()
        for role in (found.policy, found.prm):
            for chunk in getattr(role, "_ddp", ()):
                # These hooks in torch's graph form a cycle that Python's garbage collector cannot see.
                chunk.grad_accs.clear()
        found.policy = found.prm = found.reference = role = chunk = None
        gc.collect()
        topology.platform.release_cached_memory()


def fp8_fault_here(recipe: str, setting: Setting) -> str | None:
    """Return why an FP8 recipe cannot run on this machine, or is left out; None if it runs."""
    if setting.is_short and recipe != SHORT_RECIPE:
        return "left out where minutes are scarce"
    if not setting.is_cuda:
        return "no GPU"
    from megatron_prime.models.te_layers import fp8_fault
    from megatron_prime.parallel.platform import select_platform, transformer_engine_fault

    fault = transformer_engine_fault()
    if fault is not None:
        return f"Transformer Engine: {fault}"
    platform = select_platform("cuda", "bf16")
    return fp8_fault(recipe, platform.compute_capability, platform.cuda_version)  # type: ignore[arg-type]


def random_sequences(
    vocab_size: int, num_rows: int, prompt_tokens: int, response_tokens: int, seed: int = 0
) -> Sequences:
    """Return rows of random tokens, as pairs of prompt and response."""
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randint(0, vocab_size, (prompt_tokens,), generator=generator).tolist(),
            torch.randint(0, vocab_size, (response_tokens,), generator=generator).tolist(),
        )
        for _ in range(num_rows)
    ]


def plain_loss(
    rows_b: torch.Tensor, logprobs_bT: torch.Tensor, entropy_bT: torch.Tensor
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """A loss that uses log-probs and entropies, for updates whose result does not matter."""
    loss = -(logprobs_bT.sum() + 0.01 * entropy_bT.sum()) / logprobs_bT.shape[1] / 1000
    return loss, {"loss": loss.detach()}
