"""The expected answers of SGLang's `/weights_checker` for given weights: the full check of a sync on CPU servers.

The code follows SGLang's layout of fused parameters and shares nothing with the receiver, which it verifies.
"""

import hashlib
import re
from collections.abc import Mapping

import torch
import torch.nn.functional as F

from megatron_prime.hf.mapping import ModelShape, hf_shards
from megatron_prime.resharding.layouts import EngineLayout

_LINEAR_PARTS = {
    "q_proj": ("qkv_proj", 0),
    "k_proj": ("qkv_proj", 1),
    "v_proj": ("qkv_proj", 2),
    "gate_proj": ("gate_up_proj", 0),
    "up_proj": ("gate_up_proj", 1),
}
_EXPERT_PARTS = {
    "gate_proj": ("w13_weight", 0),
    "up_proj": ("w13_weight", 1),
    "down_proj": ("w2_weight", 0),
    "w1": ("w13_weight", 0),
    "w3": ("w13_weight", 1),
    "w2": ("w2_weight", 0),
}
_VOCABULARY = ("model.embed_tokens.weight", "lm_head.weight")
_EXPERT_NAME = re.compile(r"(.*\.experts)\.(\d+)\.(\w+)\.weight")


def expected_checksums(
    tensors: Mapping[str, torch.Tensor], shape: ModelShape, engines: EngineLayout
) -> list[dict[str, str]]:
    """Return SGLang's checksum of every parameter of a server by name, one dict per TP rank.

    Args:
        tensors: the whole HF tensors in the served dtype, on the CPU. On GPUs SGLang uses another hash.
        shape: of the model.
        engines: the layout of the servers.
    """
    return [
        {name: _sglang_hash(tensor) for name, tensor in _parameters(tensors, shape, engines, rank).items()}
        for rank in range(engines.tp)
    ]


def differing(expected: Mapping[str, str], answered: Mapping[str, str]) -> list[str]:
    """Return the names of parameters that differ, are missing, or are unexpected."""
    return sorted(
        name for name in expected.keys() | answered.keys() if expected.get(name) != answered.get(name)
    )


def _parameters(
    tensors: Mapping[str, torch.Tensor], shape: ModelShape, engines: EngineLayout, tp_rank: int
) -> dict[str, torch.Tensor]:
    """Return the fused parameters of one TP rank by SGLang's names."""
    linear: dict[str, dict[int, torch.Tensor]] = {}
    experts: dict[str, dict[int, dict[int, torch.Tensor]]] = {}
    for shard in hf_shards(
        shape,
        tp_size=engines.tp,
        tp_rank=tp_rank,
        vocab_divisor=engines.vocab_divisor,
        ep_size=engines.ep,
    ):
        tensor = tensors[shard.hf_name].narrow(shard.dim, shard.hf_start, shard.length)
        expert = _EXPERT_NAME.fullmatch(shard.hf_name)
        if expert:
            target, part = _EXPERT_PARTS[expert[3]]
            parts = experts.setdefault(f"{expert[1]}.{target}", {})
            parts.setdefault(int(expert[2]), {})[part] = tensor
            continue
        *parent, module, leaf = shard.hf_name.split(".")
        fused, part = _LINEAR_PARTS.get(module, (module, 0))
        if shard.hf_name in _VOCABULARY:
            tensor = _padded(tensor, shape, engines)
        linear.setdefault(".".join([*parent, fused, leaf]), {})[part] = tensor
    joined = {name: _join(parts) for name, parts in linear.items()}
    for name, by_expert in experts.items():
        # SGLang numbers the experts of a rank from 0, in the order of their global numbers.
        joined[name] = torch.stack([_join(by_expert[index]) for index in sorted(by_expert)])
    return joined


def _join(parts: Mapping[int, torch.Tensor]) -> torch.Tensor:
    return torch.cat([parts[part] for part in sorted(parts)])


def _padded(rows: torch.Tensor, shape: ModelShape, engines: EngineLayout) -> torch.Tensor:
    """Pad a shard of the vocabulary with rows of zeros, as SGLang does before it splits the vocabulary."""
    num_rows = -(-shape.vocab_size // engines.vocab_divisor) * engines.vocab_divisor // engines.tp
    return F.pad(rows, (0, 0, 0, num_rows - rows.shape[0]))


def _sglang_hash(tensor: torch.Tensor) -> str:
    """Return the first 64 bits of the SHA-256 of the bytes, SGLang's hash of CPU tensors."""
    raw = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
    return hashlib.sha256(raw.tobytes()).hexdigest()[:16]
