"""The work that all trainers share: a random model of a given size, prompts, and a reward that costs nothing.

The lengths of responses are geometrically distributed, as every token ends a response with the same probability: one
dimension of the embedding is the same for all tokens, passes through the residual stream, and is the only one that the
row of the end token in the output layer reads. Trainers therefore sample the same distribution, without being told how
long a response is to be.
"""

import math
import random
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

from megatron_prime.quickstart.arithmetic_task import (
    EOS_TOKEN,
    PAD_TOKEN,
    UNKNOWN_TOKEN,
    write_jsonl,
    write_tokenizer,
)

GROUP_SIZE = 4
MAX_PROMPT_TOKENS = 32
MEAN_RESPONSE_TOKENS = 64
MAX_RESPONSE_TOKENS = 256
NUM_PROMPTS = 512
SPECIAL = (EOS_TOKEN, PAD_TOKEN, UNKNOWN_TOKEN)


@dataclass(frozen=True)
class Size:
    """A model, and how much of it is measured."""

    width: int
    num_layers: int
    vocabulary: int
    prompts_per_step: int
    num_steps: int
    """Steps of a run, the first of which is a warm-up that does not count."""


SIZES = {
    "0.1M": Size(64, 2, 256, 16, 6),
    "5M": Size(256, 4, 4096, 16, 4),
    "50M": Size(640, 8, 8192, 8, 3),
}


def write(folder: Path, size: Size) -> None:
    """Write model/ and train.jsonl."""
    words = (*(f"w{index}" for index in range(size.vocabulary - len(SPECIAL))), *SPECIAL)
    write_tokenizer(folder / "model", words, MAX_PROMPT_TOKENS + MAX_RESPONSE_TOKENS)
    _write_model(folder / "model", size, words)
    rng = random.Random(0)
    prompts = [
        " ".join(rng.choices(words[: -len(SPECIAL)], k=rng.randint(8, MAX_PROMPT_TOKENS)))
        for _ in range(NUM_PROMPTS)
    ]
    write_jsonl(folder / "train.jsonl", [{"prompt": prompt, "answer": "even"} for prompt in prompts])


def verify(response_text: str, answer: str) -> float:
    """Return whether the numbers of a response's words have an even sum: right about once in two, and cheap."""
    del answer
    return float(sum(int(word[1:]) for word in response_text.split() if word[1:].isdigit()) % 2 == 0)


def _write_model(folder: Path, size: Size, words: tuple[str, ...]) -> None:
    end = words.index(EOS_TOKEN)
    config = Qwen3Config(
        vocab_size=len(words),
        hidden_size=size.width,
        intermediate_size=3 * size.width,
        num_hidden_layers=size.num_layers,
        num_attention_heads=size.width // 32,
        num_key_value_heads=size.width // 64,
        head_dim=32,
        max_position_embeddings=MAX_PROMPT_TOKENS + MAX_RESPONSE_TOKENS,
        tie_word_embeddings=False,
        eos_token_id=end,
        pad_token_id=words.index(PAD_TOKEN),
        bos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Qwen3ForCausalLM(config).float()
    with torch.no_grad():
        # transformers zeroes the embedding of the padding token, which a model of our own may sample.
        embedding, output = model.get_input_embeddings().weight, model.get_output_embeddings().weight
        embedding[config.pad_token_id] = torch.randn(size.width) * config.initializer_range
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight[0] = 0.0
            layer.mlp.down_proj.weight[0] = 0.0
        embedding[:, 0] = 1.0
        tokens = torch.randint(len(words), (8, 64), generator=torch.Generator().manual_seed(0))
        constant = model.model(tokens).last_hidden_state[..., 0].mean().item()
        odds = 1 / (MEAN_RESPONSE_TOKENS - 1)
        output[:, 0] = 0.0
        output[end] = 0.0
        output[end, 0] = math.log(odds * len(words)) / constant
    model.generation_config = GenerationConfig(eos_token_id=end, pad_token_id=config.pad_token_id)
    model.save_pretrained(folder)
