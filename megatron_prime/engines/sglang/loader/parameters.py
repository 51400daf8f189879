"""Views of SGLang's parameters by HF tensor names.

SGLang fuses some HF tensors into one parameter (query, key and value; gate and up; all experts of a layer), and each
tensor-parallel rank holds a shard of it.
"""

import math
import re
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from .wire import BLOCK_SIZE, Slice

_FUSED = {
    "q_proj": ("qkv_proj", 0),
    "k_proj": ("qkv_proj", 1),
    "v_proj": ("qkv_proj", 2),
    "gate_proj": ("gate_up_proj", 0),
    "up_proj": ("gate_up_proj", 1),
}
"""HF module -> SGLang's fused module, and the index of the part in it."""
_EXPERT = re.compile(r"(.*\.experts)\.(\d+)\.(gate_proj|up_proj|down_proj|w1|w2|w3)\.weight(_scale_inv)?")
_EXPERT_PARTS = {
    "gate_proj": ("w13_weight", 0),
    "w1": ("w13_weight", 0),
    "up_proj": ("w13_weight", 1),
    "w3": ("w13_weight", 1),
    "down_proj": ("w2_weight", 0),
    "w2": ("w2_weight", 0),
}
"""HF module of an expert -> SGLang's parameter of all experts, and the index of the part in it."""


class ParameterViews:
    """Finds the memory of HF tensors' slices in an SGLang model, on this tensor-parallel rank."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model
        self._parameters = dict(model.named_parameters())
        self._num_rows = dict(self._vocabularies())
        """Rows of the parameters with a row per token, without the padding."""

    def find(self, row: Slice) -> torch.Tensor:
        """Return a view of the parameter that holds the slice. Raises ValueError when it does not fit the model."""
        shard = self._shard(row.hf_name)
        if shard.dtype != getattr(torch, row.dtype):
            raise ValueError(f"{row.hf_name} is {shard.dtype} here and {row.dtype} in the trainer")
        if row.dim >= shard.dim() or row.start + row.length > shard.shape[row.dim]:
            raise ValueError(
                f"{row.hf_name}: [{row.start}, {row.start + row.length}) along dim {row.dim} is outside of this "
                f"rank's {tuple(shard.shape)}"
            )
        view = shard.narrow(row.dim, row.start, row.length)
        if view.numel() != row.num_elements:
            raise ValueError(
                f"{row.hf_name}: a slice has {row.num_elements} elements in the trainer and {view.numel()} here"
            )
        return view

    def require_all(self, rows: Iterable[Slice]) -> None:
        """Raise ValueError unless the slices fill every parameter that SGLang expects from a checkpoint."""
        # The mark is on the scales of an FP8 KV cache, for example, which checkpoints need not have.
        expected = (
            name
            for name, tensor in self._parameters.items()
            if not getattr(tensor, "_skip_weight_check", False)
        )
        filled = dict.fromkeys(expected, 0)
        for row in rows:
            filled[self._parameter_name(row.hf_name)] += row.num_elements
        missing = [
            f"{name} ({count} of {self._num_elements(name)})"
            for name, count in filled.items()
            if count != self._num_elements(name)
        ]
        if missing:
            listed = ", ".join(missing[:8])
            raise ValueError(f"{len(missing)} parameters would not be filled: {listed}")

    def clear_padding(self) -> None:
        """Set the rows with which SGLang pads the vocabulary to zero, as it does itself when it loads a checkpoint.

        They are in no HF tensor. A server that was started without weights has random numbers there.
        """
        for name, num_rows in self._num_rows.items():
            self._parameters[name].data[num_rows:].zero_()

    def _num_elements(self, name: str) -> int:
        parameter = self._parameters[name]
        num_rows = self._num_rows.get(name)
        return parameter.numel() if num_rows is None else num_rows * math.prod(parameter.shape[1:])

    def _vocabularies(self) -> Iterator[tuple[str, int]]:
        """Yield the name of each parameter with a row per token, and its rows without padding."""
        for name in self._parameters:
            module = self._model.get_submodule(name.rpartition(".")[0])
            vocabulary = getattr(module, "shard_indices", None)
            if vocabulary is not None and name.endswith(".weight"):
                yield name, int(vocabulary.num_org_elements)

    def _parameter_name(self, hf_name: str) -> str:
        expert = _EXPERT.fullmatch(hf_name)
        if expert:
            return f"{expert[1]}.{_EXPERT_PARTS[expert[3]][0]}{expert[4] or ''}"
        path, _, leaf = hf_name.rpartition(".")
        parent, _, module = path.rpartition(".")
        name = f"{parent}.{_FUSED[module][0]}.{leaf}" if module in _FUSED else hf_name
        if name not in self._parameters:
            raise ValueError(f"the server's model has no parameter {name} for {hf_name}")
        return name

    def _shard(self, hf_name: str) -> torch.Tensor:
        """Return a view of this rank's part of an HF tensor."""
        name = self._parameter_name(hf_name)
        expert = _EXPERT.fullmatch(hf_name)
        if expert:
            return self._expert_shard(name, expert)
        parameter = self._parameters[name].data
        module = hf_name.split(".")[-2]
        if module not in _FUSED:
            return parameter
        fused, part = _FUSED[module]
        if fused == "gate_up_proj":
            half = parameter.shape[0] // 2
            return parameter.narrow(0, part * half, half)
        layer = self._model.get_submodule(name.rpartition(".")[0])
        sizes: list[int] = [
            int(layer.q_proj_shard_size),  # type: ignore[arg-type]
            int(layer.kv_proj_shard_size),  # type: ignore[arg-type]
            int(layer.v_proj_shard_size),  # type: ignore[arg-type]
        ]
        if hf_name.endswith("_scale_inv"):
            # Block FP8 has one row of scales for every 128 rows of the weight.
            sizes = [-(-size // BLOCK_SIZE) for size in sizes]
        return parameter.narrow(0, sum(sizes[:part]), sizes[part])

    def _expert_shard(self, name: str, expert: re.Match[str]) -> torch.Tensor:
        if name not in self._parameters:
            raise ValueError(f"the server's model has no parameter {name} for {expert[0]}")
        layer: Any = self._model.get_submodule(name.rpartition(".")[0])
        # With expert parallelism this rank holds some of the experts, numbered from 0.
        index = layer._map_global_expert_id_to_local_expert_id(int(expert[2]))
        if not 0 <= index < self._parameters[name].shape[0]:
            raise ValueError(f"expert {expert[2]} of {expert[1]} is not on this rank of the server")
        parameter = self._parameters[name].data[index]
        target, part = _EXPERT_PARTS[expert[3]]
        if target == "w2_weight":
            return parameter
        half = parameter.shape[0] // 2
        return parameter.narrow(0, part * half, half)
