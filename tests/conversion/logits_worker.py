"""Comparisons of log-probs, in one process to save import time."""

import shutil

from safetensors.torch import load_file, save_file

from megatron_prime.conversion.logits import compare_logits


def compare(hf_root, converted):
    same = {
        name: compare_logits(hf_root / name, converted / name / "release")
        for name in ("llama rope", "qwen3 moe mixed")
    }
    other = shutil.copytree(hf_root / "qwen3", hf_root / "exchanged")
    tensors = load_file(other / "model.safetensors")
    names = [f"model.layers.{layer}.self_attn.q_proj.weight" for layer in (0, 1)]
    tensors[names[0]], tensors[names[1]] = tensors[names[1]], tensors[names[0]]
    save_file(tensors, other / "model.safetensors")
    try:
        compare_logits(other, converted / "qwen3" / "release")
    except ValueError as error:
        return {"same": same, "other": str(error)}
    return {"same": same, "other": "accepted"}
