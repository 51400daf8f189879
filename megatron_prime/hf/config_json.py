"""Read a Hugging Face config.json: the file, and the fields of `ModelShape` in it. Standard library only."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from megatron_prime.hf.families import FAMILIES
from megatron_prime.hf.families.table import ConfigJson, Family
from megatron_prime.hf.rope import read_rope

_REQUIRED_KEYS = (
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "vocab_size",
    "rms_norm_eps",
    "max_position_embeddings",
)
"""Keys that transformers would fill with the size of one concrete model: a silent default would be a wrong shape."""

_HUB_NAME = re.compile(
    r"(?:https?:/+(?:www\.)?(?:huggingface\.co|hf\.co)/+|hf:/+)?([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)/*"
)
"""The name of a model of the Hub, such as Qwen/Qwen2.5-7B, or its address, as `Path` writes it."""


class ModelFolderError(ValueError):
    """A model folder without a usable config.json or weights, or with a model that is not supported."""

    def __init__(self, folder: Path, reason: str) -> None:
        self.folder = folder
        self.reason = reason
        super().__init__(f"{folder}: {reason}")


def read_config_json(folder: Path) -> dict[str, Any]:
    """Return the content of the config.json in a model folder.

    Raises:
        ModelFolderError: The folder or the file is missing, unreadable, or does not contain a JSON object.
    """
    if not folder.is_dir():
        raise ModelFolderError(folder, missing_folder_reason(folder))
    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelFolderError(
            folder, f"no config.json; this must be the folder of a Hugging Face checkpoint{_hint(folder)}"
        ) from None
    except OSError as error:
        raise ModelFolderError(folder, f"config.json cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise ModelFolderError(folder, f"config.json is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ModelFolderError(folder, "config.json does not hold an object")
    return content


def missing_folder_reason(folder: Path) -> str:
    """Return why a path that is no folder is no model, with the command for a download if it names one of the Hub."""
    what = "not a folder" if folder.exists() else "no such folder"
    name = _HUB_NAME.fullmatch(str(folder))
    advice = (
        f"a run downloads no model of the Hugging Face Hub: `hf download {name[1]} --local-dir {name[1]}` does it, and "
        f"{name[1]} is then the folder"
        if name and not folder.exists()
        else "give the folder of a Hugging Face checkpoint"
    )
    return f"{what} (working directory: {Path.cwd()}); {advice}"


def _hint(folder: Path) -> str:
    """Return what the folder seems to be instead of a checkpoint."""
    if (folder / "adapter_config.json").is_file():
        return ", and it holds an adapter: merge it into its base model first"
    inside = sorted((*folder.glob("*/config.json"), *folder.glob("snapshots/*/config.json")))
    return f", such as {inside[0].parent}" if inside else ""


def shape_fields(config: ConfigJson) -> dict[str, Any]:
    """Return the fields of `ModelShape` that the content of a config.json describes.

    Raises ValueError for an unknown `model_type`, for missing keys and for features that are not supported.
    """
    model_type = config.get("model_type")
    family = FAMILIES.get(str(model_type))
    if family is None:
        raise ValueError(f"unknown model_type {model_type!r} in config.json; known: {', '.join(FAMILIES)}")
    missing = [key for key in (*_REQUIRED_KEYS, *family.required_keys) if config.get(key) is None]
    if missing:
        raise ValueError(f"config.json of the {model_type} model lacks {', '.join(missing)}")
    _refuse_unsupported(config, family)
    rope_theta, rope_scaling = read_rope(config, family.default_rope_theta)
    num_attention_heads = config["num_attention_heads"]
    attention_bias = bool(config.get("attention_bias", False))
    mlp_bias = bool(config.get("mlp_bias", False))
    return dict(
        family=family.model_type,
        num_layers=config["num_hidden_layers"],
        hidden_size=config["hidden_size"],
        ffn_hidden_size=config["intermediate_size"],
        num_attention_heads=num_attention_heads,
        # As in transformers, a file without KV heads describes multi-head attention: one per query head.
        num_query_groups=config.get("num_key_value_heads") or num_attention_heads,
        head_dim=_head_dim(config),
        vocab_size=config["vocab_size"],
        max_position_embeddings=config["max_position_embeddings"],
        rms_norm_eps=float(config["rms_norm_eps"]),
        rope_theta=rope_theta,
        rope_scaling=rope_scaling,
        tied=bool(config.get("tie_word_embeddings", False)),
        qkv_bias=attention_bias if family.qkv_bias is None else family.qkv_bias,
        attention_out_bias=attention_bias if family.attention_out_bias is None else family.attention_out_bias,
        mlp_bias=mlp_bias if family.mlp_bias is None else family.mlp_bias,
        qk_norm=family.qk_norm,
        **(family.read_experts(config) if family.read_experts is not None else {}),
    )


def _head_dim(config: ConfigJson) -> int:
    head_dim = config.get("head_dim")
    if head_dim is not None:
        return head_dim
    hidden_size, num_heads = config["hidden_size"], config["num_attention_heads"]
    if hidden_size % num_heads:
        raise ValueError(
            f"config.json has no head_dim and hidden_size ({hidden_size}) is not a multiple of"
            f" num_attention_heads ({num_heads})"
        )
    return hidden_size // num_heads


def _refuse_unsupported(config: ConfigJson, family: Family) -> None:
    name = family.model_type
    # A feature that was ignored would give other log-probs than transformers without any error, so each is refused.
    activation = config.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise ValueError(f"hidden_act {activation!r} of the {name} model is not supported; only 'silu' is")
    layer_types = config.get("layer_types")
    # transformers 5 lists the kind of attention of every layer; older files have switches that differ by family.
    slides = (
        family.uses_sliding_window(config)
        if layer_types is None
        else any(layer_type != "full_attention" for layer_type in layer_types)
    )
    window, positions = config.get("sliding_window"), config["max_position_embeddings"]
    # A window that holds the longest sequence is the same as none.
    if slides and (window is None or window < positions):
        raise ValueError(
            f"the {name} config uses sliding window attention, which is not supported; sequences that fit into the "
            "window are: set sliding_window to its size, and max_position_embeddings to no more than that"
        )
    if config.get("quantization_config"):
        raise ValueError(
            f"the {name} checkpoint is quantized (quantization_config); start from an unquantized one"
        )
    if float(config.get("partial_rotary_factor") or 1.0) != 1.0:
        raise ValueError(f"partial_rotary_factor of the {name} config is not 1.0, which is not supported")
