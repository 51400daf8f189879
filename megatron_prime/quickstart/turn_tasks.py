"""Two tasks of several turns that are small enough to learn on two CPU cores, each with tokenizer, model and data.

- `chain`: chain arithmetic with remarks (observed_chain.py), NUM_STEPS turns of one digit each.
- `tools`: the prompt is a key, and the answer a digit that only the tool `lookup` knows (hidden_numbers.py). No key of
  the held-out problems occurs elsewhere, so that a policy which answers in one turn is right in one problem of ten.

Both begin with demonstrations that are often wrong. `write_task(directory, name, seed)` writes `model/` (random
weights, configuration, tokenizer), `sft.jsonl` (conversations), `train.jsonl` and `heldout.jsonl`.
"""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from megatron_prime.quickstart.arithmetic import OPERANDS, Demonstrator, Problem, distinct_problems
from megatron_prime.quickstart.arithmetic_task import (
    EOS_TOKEN,
    PAD_TOKEN,
    UNKNOWN_TOKEN,
    write_jsonl,
    write_model,
    write_tokenizer,
)
from megatron_prime.quickstart.hidden_numbers import hidden_digit
from megatron_prime.quickstart.observed_chain import LETTERS, OPERATIONS, next_digit, remark

NUM_STEPS = 16
NOISE = 0.1
"""Probability of a misleading remark in the demonstrations; `ObservedChain` has its own."""
MAX_POSITIONS = 256
DIGITS = tuple("0123456789")

CHAIN_VOCABULARY = (
    *DIGITS,
    *LETTERS,
    *(f"{operator}{operand}" for operator, operands in OPERANDS.items() for operand in operands),
    EOS_TOKEN,
    PAD_TOKEN,
    UNKNOWN_TOKEN,
)

NUM_HELDOUT_KEYS = 200
"""Keys of the held-out problems, of a thousand."""
CALL = ('{"name":', '"lookup",', '"arguments":', '{"key":', '"', '"}}')
"""The words of a call around its key; a key is written as three digits with blanks around each."""
TOOLS_VOCABULARY = (
    *DIGITS,
    *CALL,
    *("<tools>", "lookup", "<user>", "<assistant>", "<tool>", "<tool_call>", "</tool_call>"),
    EOS_TOKEN,
    PAD_TOKEN,
    UNKNOWN_TOKEN,
)
CHAT_TEMPLATE = (
    "{%- if tools %}{{ '<tools>' }}{% for tool in tools %}{{ ' ' + tool.function.name }}{% endfor %}"
    "{{ '<eos>' }}{% endif -%}"
    "{%- for message in messages %}{{ ' <' + message.role + '> ' + (message.content or '') }}"
    "{%- for call in message.tool_calls or [] %}"
    '{{ \' <tool_call> {"name": "\' + call.function.name + \'", "arguments": \''
    " + call.function.arguments | tojson + '} </tool_call>' }}"
    "{%- endfor %}{{ ' <eos>' }}{% endfor -%}"
    "{%- if add_generation_prompt %}{{ ' <assistant>' }}{% endif -%}"
)
"""A chat template of words, with calls of tools as Hermes and Qwen write them."""

WRONG_CALLS = {"none": 0.25, "other key": 0.2, "unclosed": 0.15}
"""Mistakes of the demonstrator who looks up numbers, with their probabilities: it guesses without a call, looks up
another key, or forgets the end of the call and then guesses."""


class Sizes(NamedTuple):
    """Numbers of rows."""

    sft: int = 5000
    train: int = 8192
    heldout: int = 512


SIZES = Sizes()


def write_task(directory: Path, name: str, seed: int, sizes: Sizes = SIZES) -> None:
    """Write all inputs of a run of the task `chain` or `tools`."""
    vocabulary, template, rows_of = TASKS[name]
    model = directory / "model"
    write_tokenizer(model, vocabulary, MAX_POSITIONS, template)
    write_model(model, seed, vocabulary, MAX_POSITIONS)
    for file, rows in rows_of(seed, sizes).items():
        write_jsonl(directory / f"{file}.jsonl", rows)


def chain_rows(seed: int, sizes: Sizes) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of the three files of the chain; no problem occurs twice."""
    problems = distinct_problems(random.Random(f"problems {seed}"), NUM_STEPS)
    demonstrator = Demonstrator(seed)
    demonstrations = [next(problems) for _ in range(sizes.sft)]
    rows: dict[str, list[dict[str, Any]]] = {
        "sft": [
            {"messages": chain_conversation(problem, demonstrator.trace(problem))}
            for problem in demonstrations
        ]
    }
    for name, count in (("train", sizes.train), ("heldout", sizes.heldout)):
        rows[name] = [_chain_row(next(problems)) for _ in range(count)]
    return rows


def operations_of(problem: Problem) -> list[str]:
    """Return the operations as words, such as "x7"."""
    return [f"{operator}{operand}" for operator, operand in problem.operations]


def chain_conversation(problem: Problem, values: list[int]) -> list[dict[str, str]]:
    """Return the conversation in which the policy writes `values`."""
    operations = operations_of(problem)
    digits = [problem.start]
    messages = [{"role": "user", "content": f"{problem.start} {operations[0]}"}]
    for (done, operation), value in zip(enumerate(operations, 1), values, strict=True):
        is_right = value == next_digit(digits[-1], operation)
        digits.append(value)
        messages.append({"role": "assistant", "content": str(value)})
        if done < len(operations):
            letter = remark(digits, is_right, NOISE, " ".join(operations))
            messages.append({"role": "user", "content": f"{letter} {operations[done]}"})
    return messages


def _chain_row(problem: Problem) -> dict[str, Any]:
    operations = operations_of(problem)
    return {
        "prompt": f"{problem.start} {operations[0]}",
        "answer": str(problem.trace()[-1]),
        OPERATIONS: " ".join(operations),
    }


def lookup_rows(seed: int, sizes: Sizes) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of the three files of the task with a tool; held-out keys occur in no other file."""
    rng = random.Random(f"keys {seed}")
    keys = [f"{number:03}" for number in range(1000)]
    rng.shuffle(keys)
    heldout, known = keys[:NUM_HELDOUT_KEYS], keys[NUM_HELDOUT_KEYS:]
    train = [rng.choice(known) for _ in range(sizes.train)]
    return {
        "sft": [{"messages": _lookup_conversation(rng, rng.choice(known))} for _ in range(sizes.sft)],
        "train": [_lookup_row(key) for key in train],
        "heldout": [_lookup_row(key) for key in heldout[: sizes.heldout]],
    }


def _lookup_row(key: str) -> dict[str, Any]:
    return {"prompt": [{"role": "user", "content": " ".join(key)}], "answer": hidden_digit(key)}


def _lookup_conversation(rng: random.Random, key: str) -> list[dict[str, Any]]:
    """Return a demonstration, right in the fraction 1 - sum(WRONG_CALLS.values()), and sometimes by luck."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": " ".join(key)}]
    mistakes = [*WRONG_CALLS, "nothing"]
    mistake = rng.choices(mistakes, [*WRONG_CALLS.values(), 1 - sum(WRONG_CALLS.values())])[0]
    if mistake == "none":
        return [*messages, {"role": "assistant", "content": rng.choice(DIGITS)}]
    if mistake == "other key":
        place = rng.randrange(len(key))
        key = key[:place] + rng.choice(DIGITS) + key[place + 1 :]
    spaced = f" {' '.join(key)} "
    if mistake == "unclosed":
        text = f'<tool_call> {{"name": "lookup", "arguments": {{"key": "{spaced}"}}}}'
        return [*messages, {"role": "assistant", "content": text}]
    call = {"type": "function", "function": {"name": "lookup", "arguments": {"key": spaced}}}
    digit = hidden_digit(key)
    return [
        *messages,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "name": "lookup", "content": digit},
        {"role": "assistant", "content": digit},
    ]


TASKS: dict[
    str, tuple[tuple[str, ...], str | None, Callable[[int, Sizes], dict[str, list[dict[str, Any]]]]]
] = {
    "chain": (CHAIN_VOCABULARY, None, chain_rows),
    "tools": (TOOLS_VOCABULARY, CHAT_TEMPLATE, lookup_rows),
}
"""Vocabulary, chat template and rows of each task."""
