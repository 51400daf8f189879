"""The work that all trainers share: a random model of a given size, prompts, and a reward that costs nothing.

The lengths of responses are geometrically distributed, as every token ends a response with the same probability: one
dimension of the embedding is the same for all tokens, passes through the residual stream, and is the only one that the
row of the end token in the output layer reads. Trainers therefore sample the same distribution, without being told how
long a response is to be. Of a workload with equal lengths that probability is next to zero, and every response ends at
the limit.
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
NUM_PROMPTS = 512
SPECIAL = (EOS_TOKEN, PAD_TOKEN, UNKNOWN_TOKEN)
NEVER = 1e-12
"""Probability of the end token where no response is to end before the limit."""


@dataclass(frozen=True)
class Size:
    """The size of a model."""

    width: int
    num_layers: int
    vocabulary: int


@dataclass(frozen=True)
class Workload:
    """A model, its responses, and how much of it is measured."""

    size: Size
    prompts_per_step: int
    num_steps: int
    """Steps of a run, the first of which is a warm-up that does not count."""
    mean_response_tokens: int = 64
    max_response_tokens: int = 256
    """Equal to the mean where all responses have the same length."""
    num_processes: int = 1

    @property
    def has_equal_lengths(self) -> bool:
        """Whether every response ends at the limit."""
        return self.mean_response_tokens == self.max_response_tokens

    @property
    def end_probability(self) -> float:
        """Probability with which a token ends its response."""
        return NEVER if self.has_equal_lengths else 1 / self.mean_response_tokens


SMALL, MIDDLE, LARGE = Size(64, 2, 256), Size(256, 4, 4096), Size(640, 8, 8192)
WORKLOADS = {
    "0.1M": Workload(SMALL, 16, 6),
    "5M": Workload(MIDDLE, 8, 3),
    # A step of the batch above would take minutes.
    "50M": Workload(LARGE, 4, 2, mean_response_tokens=32, max_response_tokens=128),
    "0.1M-equal": Workload(SMALL, 16, 6, max_response_tokens=64),
    "5M-equal": Workload(MIDDLE, 8, 3, max_response_tokens=64),
    "5M-two": Workload(MIDDLE, 8, 3, num_processes=2),
}


def write(folder: Path, workload: Workload) -> None:
    """Write model/ and train.jsonl."""
    words = (*(f"w{index}" for index in range(workload.size.vocabulary - len(SPECIAL))), *SPECIAL)
    write_tokenizer(folder / "model", words, MAX_PROMPT_TOKENS + workload.max_response_tokens)
    _write_model(folder / "model", workload, words)
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


def _write_model(folder: Path, workload: Workload, words: tuple[str, ...]) -> None:
    size, end = workload.size, words.index(EOS_TOKEN)
    config = Qwen3Config(
        vocab_size=len(words),
        hidden_size=size.width,
        intermediate_size=3 * size.width,
        num_hidden_layers=size.num_layers,
        num_attention_heads=size.width // 32,
        num_key_value_heads=size.width // 64,
        head_dim=32,
        max_position_embeddings=MAX_PROMPT_TOKENS + workload.max_response_tokens,
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
        odds = workload.end_probability / (1 - workload.end_probability)
        output[:, 0] = 0.0
        output[end] = 0.0
        output[end, 0] = math.log(odds * len(words)) / constant
    model.generation_config = GenerationConfig(eos_token_id=end, pad_token_id=config.pad_token_id)
    model.save_pretrained(folder)
