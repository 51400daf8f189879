"""Read the rotary position embeddings of a config.json: theta and scaling. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_LLAMA3_KEYS = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


@dataclass(frozen=True)
class RopeScaling:
    """Llama-3 frequency scaling of rotary embeddings; the only kind that is supported besides none."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


def read_rope(hf_config: Mapping[str, Any]) -> tuple[float, RopeScaling | None]:
    """Return theta and scaling, from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling`.

    Raises ValueError for a kind of scaling that is not supported, such as YaRN, or that lacks a setting.
    """
    # transformers 5 moved theta and scaling into one object; both places are read, so that either version's files
    # work.
    settings = hf_config.get("rope_parameters") or hf_config.get("rope_scaling") or {}
    # transformers uses 10000 for a file without a theta; the first Llama checkpoints were published like that.
    theta = settings.get("rope_theta") or hf_config.get("rope_theta") or 10000.0
    kind = settings.get("rope_type") or settings.get("type") or "default"
    if any(isinstance(value, Mapping) for value in settings.values()):
        raise ValueError("rope_parameters that differ by layer type are not supported")
    if float(settings.get("partial_rotary_factor") or 1.0) != 1.0:
        raise ValueError("partial_rotary_factor in rope_parameters is not 1.0, which is not supported")
    if kind == "default":
        return float(theta), None
    if kind != "llama3":
        raise ValueError(f"rope scaling of type {kind!r} is not supported; known: default, llama3")
    missing = [key for key in _LLAMA3_KEYS if settings.get(key) is None]
    if missing:
        raise ValueError(f"llama3 rope scaling in config.json lacks {', '.join(missing)}")
    return float(theta), RopeScaling(
        factor=float(settings["factor"]),
        low_freq_factor=float(settings["low_freq_factor"]),
        high_freq_factor=float(settings["high_freq_factor"]),
        original_max_position_embeddings=int(settings["original_max_position_embeddings"]),
    )
