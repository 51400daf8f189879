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
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

NUM_STEPS = 8
OPERANDS = {"+": tuple(range(10)), "-": tuple(range(10)), "x": (3, 7, 9)}
EOS_TOKEN = "<eos>"
PAD_TOKEN = "<pad>"
VOCABULARY = (*(str(digit) for digit in range(10)), "+", "-", "x", "=", EOS_TOKEN, PAD_TOKEN)
MAX_POSITIONS = 64

NUM_SFT_TRACES = 5000
NUM_TRAIN_PROMPTS = 8192
NUM_HELDOUT_PROMPTS = 512


@dataclass(frozen=True)
class Problem:
    """A start digit and the operations on it."""

    start: int
    operations: tuple[tuple[str, int], ...]

    @property
    def text(self) -> str:
        """The prompt: tokens separated by one space, ending with `=`."""
        parts = [str(self.start)]
        for operator, operand in self.operations:
            parts += [operator, str(operand)]
        return " ".join([*parts, "="])

    def trace(self) -> list[int]:
        """Return the correct running value after each operation."""
        values, value = [], self.start
        for operator, operand in self.operations:
            value = evaluate(value, operator, operand)
            values.append(value)
        return values


class Demonstrator:
    """Solves problems with an operation table that is partly wrong.

    A fraction `wrong_fraction` of each operator's entries (value, operand) has one fixed wrong result, which is used
    with probability `wrong_probability`. The fraction is taken per operator rather than of the whole table, so that
    the demonstrator's accuracy is nearly the same for every seed.
    """

    def __init__(self, seed: int, wrong_fraction: float = 0.3, wrong_probability: float = 0.5) -> None:
        self._rng = random.Random(f"demonstrator {seed}")
        self._wrong_probability = wrong_probability
        self.habits: dict[tuple[int, str, int], int] = {}
        """The wrong results, by (value, operator, operand)."""
        for operator, operands in OPERANDS.items():
            entries = [(value, operator, operand) for value in range(10) for operand in operands]
            for entry in self._rng.sample(entries, round(wrong_fraction * len(entries))):
                right = evaluate(*entry)
                self.habits[entry] = self._rng.choice([digit for digit in range(10) if digit != right])

    def trace(self, problem: Problem) -> list[int]:
        """Return the running values; an error propagates to the following operations."""
        values, value = [], problem.start
        for operator, operand in problem.operations:
            habit = self.habits.get((value, operator, operand))
            if habit is not None and self._rng.random() < self._wrong_probability:
                value = habit
            else:
                value = evaluate(value, operator, operand)
            values.append(value)
        return values


def evaluate(value: int, operator: str, operand: int) -> int:
    """Apply one operation modulo 10."""
    if operator == "+":
        return (value + operand) % 10
    if operator == "-":
        return (value - operand) % 10
    assert operator == "x", f"unknown operator {operator!r}"
    return value * operand % 10


def sample_problem(rng: random.Random) -> Problem:
    """Return a problem with NUM_STEPS operations; all operators are equally likely."""
    operations = []
    for _ in range(NUM_STEPS):
        operator = rng.choice(tuple(OPERANDS))
        operations.append((operator, rng.choice(OPERANDS[operator])))
    return Problem(rng.randrange(10), tuple(operations))


def distinct_problems(rng: random.Random) -> Iterator[Problem]:
    """Yield problems endlessly, without repetition."""
    seen: set[Problem] = set()
    while True:
        problem = sample_problem(rng)
        if problem not in seen:
            seen.add(problem)
            yield problem


def write_tokenizer(directory: Path) -> None:
    """Save a word-level tokenizer that AutoTokenizer loads: one token per digit or operator, `<eos>`, `<pad>`.

    There is no unknown token, so a word outside the vocabulary raises an error.
    """
    tokenizer = Tokenizer(WordLevel({token: index for index, token in enumerate(VOCABULARY)}))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    # Without a decoder, transformers joins tokens without the spaces, and the verifier would see one word.
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=EOS_TOKEN,
        pad_token=PAD_TOKEN,
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
    )
    fast.save_pretrained(directory)


def model_config() -> Qwen3Config:
    """Return a configuration with two layers of width 64, and two KV heads for tensor-parallel size 2."""
    return Qwen3Config(
        vocab_size=len(VOCABULARY),
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=MAX_POSITIONS,
        # Twice the usual 0.02, which at width 64 shortens the loss plateau before attention finds the operands.
        initializer_range=0.04,
        # Sequences are 27 tokens long: with the usual base of 10,000, most of a head's 8 frequencies are almost
        # constant over them, and for some seeds the loss stays on the plateau.
        rope_parameters={"rope_type": "default", "rope_theta": 100.0},
        tie_word_embeddings=False,
        eos_token_id=VOCABULARY.index(EOS_TOKEN),
        # A padding token gets a zero embedding. Where the policy samples it, the first norm would multiply the gradient
        # by 1 / sqrt(rms_norm_eps), a thousand.
        pad_token_id=None,
        bos_token_id=None,
    )


def write_model(directory: Path, seed: int) -> None:
    """Save config and seeded random fp32 weights as safetensors, without changing torch's global random state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(model_config()).float()
    model.generation_config = GenerationConfig(
        eos_token_id=VOCABULARY.index(EOS_TOKEN), pad_token_id=VOCABULARY.index(PAD_TOKEN)
    )
    model.save_pretrained(directory)


def write_data(directory: Path, seed: int) -> None:
    """Write sft.jsonl, train.jsonl and heldout.jsonl; no problem occurs twice, neither in one file nor across files."""
    directory.mkdir(parents=True, exist_ok=True)
    problems = distinct_problems(random.Random(f"problems {seed}"))
    demonstrator = Demonstrator(seed)
    traces = [next(problems) for _ in range(NUM_SFT_TRACES)]
    _write_jsonl(
        directory / "sft.jsonl",
        ({"prompt": problem.text, "response": _words(demonstrator.trace(problem))} for problem in traces),
    )
    for name, num_prompts in (("train", NUM_TRAIN_PROMPTS), ("heldout", NUM_HELDOUT_PROMPTS)):
        chosen = [next(problems) for _ in range(num_prompts)]
        _write_jsonl(
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


def _write_jsonl(path: Path, rows: Iterable[dict[str, str]]) -> None:
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
