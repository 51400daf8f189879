"""The measured task: one operation modulo 10, answered by a digit, and behind it a tail of heavy-tailed length.

A prompt is a pace and an operation, as in `c 7 x 3 =`. The response is the result, and then a number of `~` that is
geometrically distributed with the mean of the pace: a mixture of geometric distributions, whose longest responses are
more than thirty times the median. The first word is verified (slow_verifier.py). The demonstrations are often wrong, so
that there is something to learn, and the filter has something to drop.
"""

import random
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

from megatron_prime.quickstart.arithmetic import Demonstrator, sample_problem
from megatron_prime.quickstart.arithmetic_task import (
    EOS_TOKEN,
    PAD_TOKEN,
    UNKNOWN_TOKEN,
    model_config,
    write_jsonl,
    write_tokenizer,
)

TAIL = "~"
PACES = {"a": (8.0, 0.5), "b": (24.0, 0.25), "c": (72.0, 0.17), "d": (216.0, 0.08)}
"""Pace -> mean length of the tail, and its share of the prompts."""
MAX_RESPONSE_TOKENS = 512
MAX_PROMPT_TOKENS = 8
SPECIAL = (EOS_TOKEN, PAD_TOKEN, UNKNOWN_TOKEN)
VOCABULARY = (*(str(digit) for digit in range(10)), *PACES, "+", "-", "x", "=", TAIL, *SPECIAL)
NUM_DEMONSTRATIONS = 6000
NUM_PROMPTS = 8192
WRONG_FRACTION = 0.6


def write(folder: Path, seed: int) -> None:
    """Write model/ (a random one), sft.jsonl and train.jsonl."""
    positions = MAX_PROMPT_TOKENS + MAX_RESPONSE_TOKENS + 2  # SGLang keeps two free
    write_tokenizer(folder / "model", VOCABULARY, positions)
    _write_model(folder / "model", seed, positions)
    for name, rows in data(seed).items():
        write_jsonl(folder / f"{name}.jsonl", rows)


def data(seed: int) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of both files."""
    rng = random.Random(f"tails {seed}")
    demonstrator = Demonstrator(seed, wrong_fraction=WRONG_FRACTION)
    demonstrations, prompts = [], []
    for _ in range(NUM_DEMONSTRATIONS):
        pace, problem = _pace(rng), sample_problem(rng, num_steps=1)
        words = [str(demonstrator.trace(problem)[-1]), *[TAIL] * _tail(rng, pace)]
        demonstrations.append({"prompt": f"{pace} {problem.text}", "response": " ".join(words)})
    for _ in range(NUM_PROMPTS):
        pace, problem = _pace(rng), sample_problem(rng, num_steps=1)
        prompts.append({"prompt": f"{pace} {problem.text}", "answer": str(problem.trace()[-1])})
    return {"sft": demonstrations, "train": prompts}


def _pace(rng: random.Random) -> str:
    return rng.choices(tuple(PACES), [share for _, share in PACES.values()])[0]


def _tail(rng: random.Random, pace: str) -> int:
    """Return a geometrically distributed number, cut where a response would be truncated."""
    length = 0
    while rng.random() > 1 / (PACES[pace][0] + 1) and length < MAX_RESPONSE_TOKENS - 2:
        length += 1
    return length


def _write_model(folder: Path, seed: int, positions: int) -> None:
    """Save seeded random weights of the quickstart's model at twice the width."""
    small = model_config(VOCABULARY, positions).to_dict()
    wider = {"hidden_size": 128, "intermediate_size": 512, "num_attention_heads": 8, "num_key_value_heads": 4}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(Qwen3Config(**(small | wider))).float()
    model.generation_config = GenerationConfig(eos_token_id=VOCABULARY.index(EOS_TOKEN))
    model.save_pretrained(folder)
