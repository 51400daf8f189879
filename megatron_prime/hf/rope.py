"""Read the rotary position embeddings of a config.json: theta and scaling. Standard library only."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_LLAMA3_KEYS = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


@dataclass(frozen=True)
class Llama3Scaling:
    """Llama-3 scaling: long wavelengths are divided by `factor`, short ones kept, those between interpolated."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclass(frozen=True)
class LinearScaling:
    """Position interpolation (arXiv 2306.15595): every position is divided by `factor`."""

    factor: float


@dataclass(frozen=True)
class YarnScaling:
    """YaRN (arXiv 2309.00071): by its turns in the original context, a dimension is interpolated, kept, or mixed."""

    factor: float
    original_max_position_embeddings: int
    attention_factor: float
    """Factor of the rotated queries and of the rotated keys, so that attention scores get its square."""
    served_attention_factor: float
    """The factor that SGLang reads from the same settings; other names than those of transformers say it there."""
    beta_fast: float = 32.0
    """Dimensions with more turns than this keep their frequency."""
    beta_slow: float = 1.0
    """Dimensions with fewer turns than this are divided by `factor`."""
    truncate: bool = True
    """True if the bounds between these dimensions are whole dimensions."""


@dataclass(frozen=True)
class DynamicScaling:
    """Dynamic NTK scaling: theta grows with the length of the sequence, beyond `max_position_embeddings` only.

    Sequences are never longer than that here, and have the unscaled frequencies of transformers. In longer ones, the
    probability of a token would depend on how many tokens follow it, and a sampled token's on when its key was cached.
    """

    factor: float


RopeScaling = Llama3Scaling | LinearScaling | YarnScaling | DynamicScaling


def read_rope(
    hf_config: Mapping[str, Any], default_theta: float = 10000.0
) -> tuple[float, RopeScaling | None]:
    """Return theta and scaling, from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling`.

    `default_theta` is that of a file without one. Raises ValueError for a kind of scaling that is not supported, or
    that lacks a setting.
    """
    # transformers 5 moved theta and scaling into one object; both places are read, so that either version's files
    # work.
    settings = hf_config.get("rope_parameters") or hf_config.get("rope_scaling") or {}
    theta = float(settings.get("rope_theta") or hf_config.get("rope_theta") or default_theta)
    kind = settings.get("rope_type") or settings.get("type") or "default"
    if any(isinstance(value, Mapping) for value in settings.values()):
        raise ValueError("rope_parameters that differ by layer type are not supported")
    if float(settings.get("partial_rotary_factor") or 1.0) != 1.0:
        raise ValueError("partial_rotary_factor in rope_parameters is not 1.0, which is not supported")
    if kind == "default":
        return theta, None
    if kind not in _READERS:
        raise ValueError(
            f"rope scaling of type {kind!r} is not supported; known: default, {', '.join(_READERS)}"
        )
    return theta, _READERS[kind](settings, hf_config)


def _factor(settings: Mapping[str, Any], kind: str) -> float:
    factor = settings.get("factor")
    if factor is None:
        raise ValueError(f"{kind} rope scaling in config.json lacks factor")
    if not 1.0 <= float(factor) < math.inf:
        raise ValueError(f"factor = {factor} of the {kind} rope scaling in config.json must be at least 1")
    return float(factor)


def _read_linear(settings: Mapping[str, Any], _: Mapping[str, Any]) -> LinearScaling:
    return LinearScaling(_factor(settings, "linear"))


def _read_dynamic(settings: Mapping[str, Any], _: Mapping[str, Any]) -> DynamicScaling:
    if settings.get("alpha") is not None:
        raise ValueError("dynamic rope scaling with alpha (Hunyuan) is not supported")
    return DynamicScaling(_factor(settings, "dynamic"))


def _read_llama3(settings: Mapping[str, Any], _: Mapping[str, Any]) -> Llama3Scaling:
    missing = [key for key in _LLAMA3_KEYS if settings.get(key) is None]
    if missing:
        raise ValueError(f"llama3 rope scaling in config.json lacks {', '.join(missing)}")
    return Llama3Scaling(
        factor=float(settings["factor"]),
        low_freq_factor=float(settings["low_freq_factor"]),
        high_freq_factor=float(settings["high_freq_factor"]),
        original_max_position_embeddings=int(settings["original_max_position_embeddings"]),
    )


def _read_yarn(settings: Mapping[str, Any], hf_config: Mapping[str, Any]) -> YarnScaling:
    factor = _factor(settings, "yarn")
    # As in transformers: a value beside the settings comes first, and without any the model's whole context counts.
    original = (
        hf_config.get("original_max_position_embeddings")
        or settings.get("original_max_position_embeddings")
        or hf_config["max_position_embeddings"]
    )
    mscales = [settings.get(key) for key in ("mscale", "mscale_all_dim")]
    # transformers takes 0 for a missing value, SGLang for a value.
    attention = settings.get("attention_factor")
    if attention is None:
        attention = _attention_factor(factor, *(mscale or None for mscale in mscales))
    return YarnScaling(
        factor=factor,
        original_max_position_embeddings=int(original),
        attention_factor=float(attention),
        served_attention_factor=_attention_factor(factor, *mscales) * float(settings.get("attn_factor", 1.0)),
        beta_fast=float(settings.get("beta_fast") or 32.0),
        beta_slow=float(settings.get("beta_slow") or 1.0),
        truncate=bool(settings.get("truncate", True)),
    )


def _attention_factor(factor: float, mscale: float | None, mscale_all_dim: float | None) -> float:
    """Return the default of YaRN's attention factor, 0.1 * ln(factor) + 1 (arXiv 2309.00071, equation 22).

    DeepSeek's models give two factors of the logarithm, and take the quotient of the two results.
    """
    if mscale is None or mscale_all_dim is None:
        return 0.1 * math.log(factor) + 1.0
    return (0.1 * mscale * math.log(factor) + 1.0) / (0.1 * mscale_all_dim * math.log(factor) + 1.0)


_READERS = {
    "llama3": _read_llama3,
    "linear": _read_linear,
    "yarn": _read_yarn,
    "dynamic": _read_dynamic,
}


def served_rope_fault(scaling: RopeScaling | None) -> str | None:
    """Return why SGLang (0.5.23) would rotate queries and keys otherwise than the trainer; None if it does the same."""
    if isinstance(scaling, DynamicScaling) and scaling.factor > 1.0:
        return (
            "SGLang applies dynamic rope scaling to sequences of every length, transformers and the trainer only to "
            "those beyond max_position_embeddings, which are not supported: remove the scaling from config.json, which "
            "changes nothing in training, or set rollout.engine to 'local'"
        )
    if isinstance(scaling, YarnScaling) and not math.isclose(
        scaling.attention_factor, scaling.served_attention_factor, rel_tol=1e-6
    ):
        ratio = scaling.attention_factor / scaling.served_attention_factor
        return (
            f"SGLang reads no attention_factor and would scale attention by {scaling.served_attention_factor:.6g} "
            f"instead of {scaling.attention_factor:.6g}: multiply attn_factor (by default 1) beside the YaRN settings "
            f"of config.json by {ratio:.9g}, which SGLang reads and transformers ignores"
        )
    return None
