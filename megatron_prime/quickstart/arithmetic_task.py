"""A reasoning task that is small enough to learn on two CPU cores, with a generated tokenizer, model and data.

A prompt is `a op b op c ... =`, evaluated from left to right modulo 10 with NUM_STEPS operations of + - x. The
operand of x is 3, 7 or 9, so that every operation is a bijection of the running value and one wrong digit normally
makes the answer wrong. The response is the running value after each operation, one token per operation, then
end-of-sequence. Only the last digit is verified (accuracy of a random guess: 0.1).

The SFT traces come from a demonstrator with errors in its operation table. A model trained on them has learned the
procedure, with systematic mistakes that reinforcement learning then has to remove. The two arguments of `Demonstrator`
set how often it is right.

    python -m megatron_prime.quickstart.arithmetic_task --output runs/arithmetic

writes `model/` (random weights, config and tokenizer as Hugging Face saves them), `sft.jsonl` (prompt, response),
`train.jsonl` and `heldout.jsonl` (prompt, answer). The same seed writes the same bytes.
"""

import argparse
import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from megatron_prime.quickstart.arithmetic import Demonstrator, distinct_problems

EOS_TOKEN = "<eos>"
PAD_TOKEN = "<pad>"
UNKNOWN_TOKEN = "<unk>"
VOCABULARY = (*(str(digit) for digit in range(10)), "+", "-", "x", "=", EOS_TOKEN, PAD_TOKEN)
MAX_POSITIONS = 64

NUM_SFT_TRACES = 5000
NUM_TRAIN_PROMPTS = 8192
NUM_HELDOUT_PROMPTS = 512


def write_tokenizer(
    directory: Path,
    vocabulary: Sequence[str] = VOCABULARY,
    max_positions: int = MAX_POSITIONS,
    chat_template: str | None = None,
) -> None:
    """Save a word-level tokenizer that AutoTokenizer loads: one token per word of the vocabulary.

    A word outside the vocabulary raises an error, unless the vocabulary has UNKNOWN_TOKEN.
    """
    unknown = UNKNOWN_TOKEN if UNKNOWN_TOKEN in vocabulary else None
    token_of = {token: index for index, token in enumerate(vocabulary)}
    tokenizer = Tokenizer(WordLevel(token_of) if unknown is None else WordLevel(token_of, unknown))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    # Without a decoder, transformers joins tokens without the spaces, and the verifier would see one word.
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=EOS_TOKEN,
        pad_token=PAD_TOKEN,
        unk_token=unknown,
        model_max_length=max_positions,
        chat_template=chat_template,
        clean_up_tokenization_spaces=False,
    )
    fast.save_pretrained(directory)


def model_config(vocabulary: Sequence[str] = VOCABULARY, max_positions: int = MAX_POSITIONS) -> Qwen3Config:
    """Return a configuration with two layers of width 64, and two KV heads for tensor-parallel size 2."""
    return Qwen3Config(
        vocab_size=len(vocabulary),
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=max_positions,
        # Twice the usual 0.02, which at width 64 shortens the loss plateau before attention finds the operands.
        initializer_range=0.04,
        # Sequences are 27 tokens long: with the usual base of 10,000, most of a head's 8 frequencies are almost
        # constant over them, and for some seeds the loss stays on the plateau.
        rope_parameters={"rope_type": "default", "rope_theta": 100.0},
        tie_word_embeddings=False,
        eos_token_id=vocabulary.index(EOS_TOKEN),
        # A padding token gets a zero embedding. Where the policy samples it, the first norm would multiply the gradient
        # by 1 / sqrt(rms_norm_eps), a thousand.
        pad_token_id=None,
        bos_token_id=None,
    )


def write_model(
    directory: Path, seed: int, vocabulary: Sequence[str] = VOCABULARY, max_positions: int = MAX_POSITIONS
) -> None:
    """Save config and seeded random fp32 weights as safetensors, without changing torch's global random state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(model_config(vocabulary, max_positions)).float()
    model.generation_config = GenerationConfig(
        eos_token_id=vocabulary.index(EOS_TOKEN), pad_token_id=vocabulary.index(PAD_TOKEN)
    )
    model.save_pretrained(directory)


def write_data(directory: Path, seed: int) -> None:
    """Write sft.jsonl, train.jsonl and heldout.jsonl; no problem occurs twice, neither in one file nor across files."""
    directory.mkdir(parents=True, exist_ok=True)
    problems = distinct_problems(random.Random(f"problems {seed}"))
    demonstrator = Demonstrator(seed)
    traces = [next(problems) for _ in range(NUM_SFT_TRACES)]
    write_jsonl(
        directory / "sft.jsonl",
        ({"prompt": problem.text, "response": _words(demonstrator.trace(problem))} for problem in traces),
    )
    for name, num_prompts in (("train", NUM_TRAIN_PROMPTS), ("heldout", NUM_HELDOUT_PROMPTS)):
        chosen = [next(problems) for _ in range(num_prompts)]
        write_jsonl(
            directory / f"{name}.jsonl",
            ({"prompt": problem.text, "answer": str(problem.trace()[-1])} for problem in chosen),
        )


def write_all(directory: Path, seed: int) -> None:
    """Write all inputs of a run: `directory`/model (weights, config, tokenizer) and the three data files."""
    write_tokenizer(directory / "model")
    write_model(directory / "model", seed)
    write_data(directory, seed)


def _words(values: Iterable[int]) -> str:
    return " ".join(str(value) for value in values)


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write a file of JSON records."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Write the arithmetic task: model, tokenizer and data.")
    parser.add_argument("--output", type=Path, required=True, help="folder to write into")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the weights, the problems and the demonstrator"
    )
    arguments = parser.parse_args()
    write_all(arguments.output, arguments.seed)
    print(f"wrote model/, sft.jsonl, train.jsonl and heldout.jsonl to {arguments.output}")  # noqa: T201


if __name__ == "__main__":
    main()
