"""Prompts to sample from: files -> tokenised `Prompt`s -> a resumable stream.

files -> Row (rows.py) -> token ids (chat template) -> PromptDataset -> PromptStream -> rollout
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from megatron_prime.config.schema import DataConfig
from megatron_prime.data.ordering import ResumableOrder
from megatron_prime.data.rows import Row, read_rows
from megatron_prime.types import Prompt

ChatTemplate = Literal["auto", "always", "never"]


@dataclass(frozen=True, slots=True)
class PromptDataset:
    """Tokenised prompts in file order."""

    prompts: tuple[Prompt, ...]
    """`Prompt.index` counts rows over all files, dropped ones included: it does not move with max_prompt_tokens."""
    num_dropped: int
    """Rows left out because the prompt was longer than max_prompt_tokens."""
    fingerprint: str
    """Hash of all prompts (index, tokens, answer, source, ability)."""

    def __len__(self) -> int:
        """Prompts kept."""
        return len(self.prompts)

    @staticmethod
    def read(
        paths: Sequence[Path], config: DataConfig, tokenizer: PreTrainedTokenizerBase, max_prompt_tokens: int
    ) -> "PromptDataset":
        """Read and tokenise jsonl or parquet files.

        Args:
            paths: `config.train` or `config.evaluation`.
            config: names of the fields, and whether to apply the chat template.
            tokenizer: of the policy.
            max_prompt_tokens: longer prompts are dropped and counted.

        Raises:
            ValueError: no file, a missing one, a row that does not fit (named by file and row), or no prompt left.
        """
        prompts: list[Prompt] = []
        num_dropped = 0
        for index, row in enumerate(_rows_of(paths)):
            token_ids = prompt_token_ids(row, config, tokenizer)
            if len(token_ids) > max_prompt_tokens:
                num_dropped += 1
                continue
            answer, source, ability = _answer(row, config), source_of(row, config), ability_of(row, config)
            prompts.append(Prompt(index, token_ids, answer, source, ability))
        if not prompts:
            reason = "it has no rows"
            if num_dropped:
                reason = f"all its {num_dropped} prompts are longer than {max_prompt_tokens} tokens"
            raise ValueError(f"the data set {_names(paths)} is empty: {reason}")
        parts = ((p.index, p.token_ids, p.answer, p.source, p.ability) for p in prompts)
        return PromptDataset(tuple(prompts), num_dropped, fingerprint(parts))


class PromptStream:
    """Prompts in the order of training, resumable at any prompt. Endless: epochs follow each other."""

    def __init__(self, dataset: PromptDataset, seed: int, shuffle: bool = True) -> None:
        """Start at the first epoch; see `ResumableOrder` for the order."""
        self._order = ResumableOrder(dataset.prompts, dataset.fingerprint, seed, shuffle)

    @property
    def epoch(self) -> int:
        """Complete passes over the data so far."""
        return self._order.epoch

    def next(self, num_prompts: int) -> list[Prompt]:
        """The next prompts; more than the data set holds runs into following epochs."""
        return self._order.next(num_prompts)

    def state_dict(self) -> dict[str, Any]:
        """Position and fingerprint of the data: plain JSON values."""
        return self._order.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where the state was taken. Raises ValueError when data, seed or shuffling differ."""
        self._order.load_state_dict(state)


def prompt_token_ids(row: Row, config: DataConfig, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Token ids the engine is given, chat template applied where `config.chat_template` says so.

    Raises:
        ValueError: the field is missing, empty, or neither text nor a list of {"role", "content"} messages.
    """
    value = row.field(config.prompt_field)
    messages: list[dict[str, str]] | None = None
    if isinstance(value, str):
        text = value
    elif isinstance(value, list):
        messages = _checked_messages(row, config.prompt_field, value)
        text = "\n".join(message["content"] for message in messages)
    else:
        raise row.error(
            f"{config.prompt_field!r} is a {type(value).__name__}; a prompt is text or a list of chat messages"
        )
    if not text.strip():
        raise row.error(f"{config.prompt_field!r} is empty")
    if config.chat_template == "always" or (config.chat_template == "auto" and messages is not None):
        if tokenizer.chat_template is None:
            raise row.error(
                "the tokenizer has no chat template for this prompt: set data.chat_template = 'never' to join the "
                "messages' text instead"
            )
        rendered = tokenizer.apply_chat_template(
            messages or [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
        )
        # The template writes its own special tokens; adding them again would double BOS.
        token_ids = tokenizer.encode(str(rendered), add_special_tokens=False)
    else:
        token_ids = tokenizer.encode(text)
    if not token_ids:
        raise row.error(f"{config.prompt_field!r} has no tokens: {text!r}")
    return tuple(token_ids)


def source_of(row: Row, config: DataConfig) -> str:
    """Name of the row's data source, or "" when no field is configured for it."""
    return "" if config.source_field is None else str(row.field(config.source_field))


def ability_of(row: Row, config: DataConfig) -> str:
    """What the row asks for ("math", "code"), or "" when no field is configured for it."""
    return "" if config.ability_field is None else str(row.field(config.ability_field))


def fingerprint(parts: Iterable[tuple[Any, ...]]) -> str:
    """Hash over records of plain values; changes with any of them and with their order."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(json.dumps(part).encode())
        digest.update(b"\n")
    return digest.hexdigest()[:16]


def _rows_of(paths: Sequence[Path]) -> Iterable[Row]:
    if not paths:
        raise ValueError("no data files are given: set data.train (or data.evaluation, sft.data)")
    for path in paths:
        yield from read_rows(path)


def _names(paths: Sequence[Path]) -> str:
    return ", ".join(str(path) for path in paths)


def _answer(row: Row, config: DataConfig) -> str:
    """The ground truth as text: numbers by str, objects and lists (unit tests of code) as JSON."""
    value = row.field(config.answer_field)
    if value is None:
        raise row.error(f"{config.answer_field!r} is null: the verifier needs a ground truth")
    if isinstance(value, str):
        if not value.strip():
            raise row.error(f"{config.answer_field!r} is empty: the verifier needs a ground truth")
        return value
    if isinstance(value, dict | list):
        return json.dumps(value)
    return str(value)


def _checked_messages(row: Row, name: str, messages: list[Any]) -> list[dict[str, str]]:
    if not messages:
        raise row.error(f"{name!r} is an empty list of messages")
    checked = []
    for position, message in enumerate(messages):
        if (
            not isinstance(message, dict)
            or not isinstance(message.get("content"), str)
            or "role" not in message
        ):
            raise row.error(
                f"message {position} of {name!r} is {message!r}; a message is "
                '{"role": "user", "content": "text"}'
            )
        checked.append({"role": str(message["role"]), "content": message["content"]})
    return checked
