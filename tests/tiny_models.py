"""Tiny random HF checkpoints of every family, as independent oracles."""

from pathlib import Path

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

SIZES = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 128,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
BUILDERS = {
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES, tie_word_embeddings=False)),
    "qwen2 tied": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES, tie_word_embeddings=True)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=12, tie_word_embeddings=False)),
    "qwen3 tied": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=8, tie_word_embeddings=True)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=False)),
    "llama rope": lambda: LlamaForCausalLM(
        LlamaConfig(**SIZES, tie_word_embeddings=True, rope_parameters=LLAMA3_ROPE)
    ),
}


def tiny_model(name: str, seed: int = 0) -> PreTrainedModel:
    """A model in fp32 whose every weight, biases and norms included, is random: none may be left out unnoticed."""
    torch.manual_seed(seed)
    model = BUILDERS[name]()
    for parameter_name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=float("norm" in parameter_name), std=0.1)
    return model.eval()


def save_tiny_model(name: str, folder: Path, seed: int = 0) -> PreTrainedModel:
    """Save it as an HF checkpoint and return it."""
    model = tiny_model(name, seed)
    model.save_pretrained(folder)
    return model


def ragged_sequences(vocab_size: int = 300, seed: int = 1) -> list[tuple[list[int], list[int]]]:
    """Prompt and response token ids of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    lengths = [(3, 5), (7, 2), (1, 9), (4, 4), (6, 8)]
    return [
        tuple(torch.randint(0, vocab_size, (length,), generator=generator).tolist() for length in pair)
        for pair in lengths
    ]
