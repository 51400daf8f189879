"""The tasks of the benchmark: their data, their model before fine-tuning, and their part of the configuration."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

from benchmarks.learning.chain import (
    LETTERS,
    OPERATIONS,
    OPERATORS,
    apply,
    operands,
    operations_of,
    reply,
    symbol,
)
from megatron_prime.quickstart import turn_tasks
from megatron_prime.quickstart.arithmetic_task import (
    EOS_TOKEN,
    PAD_TOKEN,
    UNKNOWN_TOKEN,
    model_config,
    write_jsonl,
    write_tokenizer,
)

NUM_DEMONSTRATIONS = 5000
NUM_PROBLEMS = 8192
"""A run samples fewer, so that no problem is sampled twice, and the accuracy of a step is that of new problems."""
Rows = dict[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class ChainTask:
    """Chain arithmetic in turns (chain.py), after demonstrations that are often wrong."""

    title: str
    num_steps: int = 16
    modulus: int = 10
    marks: int = 1
    noise: float = 0.1
    shown_noise: float | None = None
    """Noise of the marks in the demonstrations, if it is another one. 0.5 shows a model that marks exist, and not what
    they mean, as with an environment that it has not been fine-tuned on."""
    wrong_fraction: float = 0.3
    """Fraction of each operator's table that the demonstrator remembers wrongly, and uses in half of all cases."""
    demonstrations: int = 1
    """Multiplies the number of demonstrations, of which a larger table needs more."""
    settings: tuple[str, ...] = ()
    """More of the task's part of the configuration."""

    def overrides(self) -> list[str]:
        """Return this task's part of the configuration."""
        return [
            "environment.name=benchmarks.learning.chain:Chain",
            *(
                f"environment.settings.{name}={value}"
                for name, value in (("modulus", self.modulus), ("marks", self.marks), ("noise", self.noise))
            ),
            f"environment.max_turns={self.num_steps}",
            "environment.max_turn_tokens=1",
            "environment.num_workers=1",
            "rollout.max_prompt_tokens=8",
            f"rollout.max_response_tokens={3 * self.num_steps}",
            *self.settings,
        ]

    def write(self, folder: Path, seed: int) -> None:
        """Write model/, sft.jsonl and train.jsonl."""
        numbers = [str(number) for number in range(self.modulus)]
        symbols = [symbol(operation) for operation in operations_of(self.modulus)]
        vocabulary = (*numbers, *LETTERS, *symbols, EOS_TOKEN, PAD_TOKEN, UNKNOWN_TOKEN)
        positions = 8 + 3 * self.num_steps
        write_tokenizer(folder / "model", vocabulary, positions)
        write_model(folder / "model", seed, model_config(vocabulary, positions))
        for name, rows in self.rows(seed).items():
            write_jsonl(folder / f"{name}.jsonl", rows)

    def rows(self, seed: int) -> Rows:
        """Return the rows of both files; no problem occurs twice."""
        problems = self._problems(random.Random(f"problems {seed}"))
        demonstrator = _Demonstrator(self, seed)
        return {
            "sft": [
                demonstrator.row(*next(problems)) for _ in range(self.demonstrations * NUM_DEMONSTRATIONS)
            ],
            "train": [self._row(*next(problems)) for _ in range(NUM_PROBLEMS)],
        }

    def _problems(self, rng: random.Random) -> Iterator[tuple[int, tuple[str, ...]]]:
        seen = set()
        while True:
            chosen = [rng.choice(OPERATORS) for _ in range(self.num_steps)]
            operations = tuple(f"{each}{rng.choice(operands(each, self.modulus))}" for each in chosen)
            problem = rng.randrange(self.modulus), operations
            if problem not in seen:
                seen.add(problem)
                yield problem

    def _row(self, start: int, operations: tuple[str, ...]) -> dict[str, Any]:
        value = start
        for operation in operations:
            value = apply(value, operation, self.modulus)
        return {
            "prompt": f"{start} {symbol(operations[0])}",
            "answer": str(value),
            OPERATIONS: " ".join(operations),
        }


class _Demonstrator:
    """Solves problems with a table that is partly wrong; the task's marks follow its numbers."""

    def __init__(self, task: ChainTask, seed: int) -> None:
        self._task = task
        self._rng = random.Random(f"demonstrator {seed}")
        self._habits: dict[tuple[int, str], int] = {}
        for operator in OPERATORS:
            entries = [
                (value, f"{operator}{operand}")
                for value in range(task.modulus)
                for operand in operands(operator, task.modulus)
            ]
            for value, operation in self._rng.sample(entries, round(task.wrong_fraction * len(entries))):
                right = apply(value, operation, task.modulus)
                wrong = [number for number in range(task.modulus) if number != right]
                self._habits[value, operation] = self._rng.choice(wrong)

    def row(self, start: int, operations: tuple[str, ...]) -> dict[str, Any]:
        """Return a demonstration."""
        task, written, judged, words = self._task, [start], [], []
        for operation in operations:
            right = apply(written[-1], operation, task.modulus)
            habit = self._habits.get((written[-1], operation))
            value = habit if habit is not None and self._rng.random() < 0.5 else right
            judged.append(value == right)
            written.append(value)
            words.append(str(value))
            if len(judged) < len(operations):
                noise = task.noise if task.shown_noise is None else task.shown_noise
                words.append(reply(operations, written, judged, task.marks, noise))
        return {"prompt": f"{start} {symbol(operations[0])}", "response": " ".join(words)}


@dataclass(frozen=True)
class ToolTask:
    """The quickstart's task with a tool: look up a digit, and copy it."""

    title: str

    def overrides(self) -> list[str]:
        """Return this task's part of the configuration."""
        return [
            "data.chat_template=auto",
            "environment.name=tools",
            'environment.tools=["megatron_prime.quickstart.hidden_numbers:lookup"]',
            "environment.max_turns=3",
            "environment.num_workers=1",
            "rollout.max_prompt_tokens=16",
            "rollout.max_response_tokens=64",
            "trainer.num_steps=16",
            "sft.messages_field=messages",
            "sft.train_replies=true",
        ]

    def write(self, folder: Path, seed: int) -> None:
        """Write model/, sft.jsonl and train.jsonl."""
        turn_tasks.write_task(folder, "tools", seed)


def write_model(folder: Path, seed: int, config: Qwen3Config) -> None:
    """Save config and seeded random fp32 weights of a model with one layer, of which every token ends a turn."""
    config = Qwen3Config(**(config.to_dict() | {"num_hidden_layers": 1, "layer_types": None}))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(config).float()
    model.generation_config = GenerationConfig(eos_token_id=list(range(config.vocab_size)))
    model.save_pretrained(folder)


Task = ChainTask | ToolTask

TASKS: dict[str, Task] = {
    "marks": ChainTask("16 steps, each judged by a mark that is right 9 times in 10"),
    "new_marks": ChainTask("16 steps, marks right 9 times in 10, new to the model", shown_noise=0.5),
    "marks24": ChainTask("24 steps, each judged by a mark that is right 9 times in 10", num_steps=24),
    "marks_noise20": ChainTask("16 steps, marks right 8 times in 10", noise=0.2),
    "marks_noise50": ChainTask("16 steps, marks that mean nothing", noise=0.5),
    "delayed": ChainTask("16 steps, every fourth mark judges the last four steps", marks=4),
    "plain16": ChainTask("16 steps without marks", marks=0),
    "plain8": ChainTask("8 steps without marks", num_steps=8, marks=0),
    "modulo29": ChainTask(
        "5 steps modulo 29 without marks",
        num_steps=5,
        modulus=29,
        marks=0,
        demonstrations=4,
        settings=("sft.num_steps=1200", "trainer.num_steps=90"),
    ),
    "tools": ToolTask("Look up a digit by a tool"),
}
