"""A module whose parameters have the names, shapes and attributes of SGLang's fused layers, for tests without SGLang.

tests/engines/sglang/weights/test_shard_sync.py tests the real layers of SGLang.
"""

from types import SimpleNamespace

import torch
from torch import nn


def _layer(*shapes, **attributes):
    layer = nn.Module()
    for name, shape in shapes:
        layer.register_parameter(name, nn.Parameter(torch.randn(shape), requires_grad=False))
    for name, value in attributes.items():
        setattr(layer, name, value)
    return layer


class FusedModel(nn.Module):
    """An embedding and one layer with attention, a dense MLP and experts, of one tensor-parallel rank."""

    def __init__(self, hidden, query, kv, ffn, vocab, padded_vocab, num_experts=0, ep_rank=0):
        super().__init__()
        self.model = nn.Module()
        self.model.embed_tokens = _layer(
            ("weight", (padded_vocab, hidden)), shard_indices=SimpleNamespace(num_org_elements=vocab)
        )
        self.model.layer = layer = nn.Module()
        layer.qkv_proj = _layer(
            ("weight", (query + 2 * kv, hidden)),
            ("bias", (query + 2 * kv,)),
            q_proj_shard_size=query,
            kv_proj_shard_size=kv,
            v_proj_shard_size=kv,
        )
        layer.gate_up_proj = _layer(("weight", (2 * ffn, hidden)))
        layer.down_proj = _layer(("weight", (hidden, ffn)))
        if num_experts:
            held = num_experts // 2
            layer.experts = _layer(
                ("w13_weight", (held, 2 * ffn, hidden)), ("w2_weight", (held, hidden, ffn))
            )
            layer.experts._map_global_expert_id_to_local_expert_id = lambda index: (
                index - ep_rank * held if ep_rank * held <= index < (ep_rank + 1) * held else -1
            )


def quantized(model):
    """The same model with linear weights in float8 and a scale for each 128 x 128 block, as SGLang lays them out."""
    for path, layer in list(model.named_modules()):
        names = [name for name, _ in layer.named_parameters(recurse=False) if "weight" in name]
        if path.endswith("embed_tokens"):
            continue
        for name in names:
            weight = getattr(layer, name)
            scales = [-(-size // 128) for size in weight.shape[-2:]]
            scale = torch.randn(*weight.shape[:-2], *scales)
            layer.register_parameter(f"{name}_scale_inv", nn.Parameter(scale, requires_grad=False))
            setattr(layer, name, nn.Parameter(weight.to(torch.float8_e4m3fn), requires_grad=False))
    return model
