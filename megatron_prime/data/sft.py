"""Prompts with responses, for the supervised warm-up."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from megatron_prime.config.schema import DataConfig
from megatron_prime.data.ordering import ResumableOrder
from megatron_prime.data.prompts import fingerprint, prompt_token_ids
from megatron_prime.data.rows import read_rows
from megatron_prime.data.tokenizer import end_of_sequence


@dataclass(frozen=True, slots=True)
class SFTExample:
    """One demonstration."""

    prompt_ids: tuple[int, ...]
    """Never empty, chat template applied: the same tokens that a rollout starts from."""
    response_ids: tuple[int, ...]
    """The end-of-sequence token last, so that the model learns to stop."""


@dataclass(frozen=True, slots=True)
class SFTDataset:
    """Demonstrations in file order."""

    examples: tuple[SFTExample, ...]
    num_dropped: int
    """Rows left out because prompt and response together were longer than max_tokens."""
    fingerprint: str

    def __len__(self) -> int:
        """Examples kept."""
        return len(self.examples)

    @staticmethod
    def read(
        paths: Sequence[Path],
        config: DataConfig,
        response_field: str,
        tokenizer: PreTrainedTokenizerBase,
        max_tokens: int,
    ) -> "SFTDataset":
        """Read and tokenise jsonl or parquet files.

        Args:
            paths: `sft.data`.
            config: name of the prompt field and the use of the chat template; no answer is needed.
            response_field: column with the response text; dots descend.
            tokenizer: of the policy.
            max_tokens: longer examples are dropped and counted (never cut: a cut trace teaches not to stop).

        Raises:
            ValueError: no file, a missing one, a row that does not fit (named by file and row), or no example left.
        """
        if not paths:
            raise ValueError("no demonstrations are given: set sft.data")
        examples: list[SFTExample] = []
        num_dropped = 0
        for path in paths:
            for row in read_rows(path):
                response = row.field(response_field)
                if not isinstance(response, str) or not response.strip():
                    raise row.error(
                        f"{response_field!r} is {response!r}; a response is text that is not empty"
                    )
                prompt_ids = prompt_token_ids(row, config, tokenizer)
                response_ids = response_token_ids(response, tokenizer)
                if len(prompt_ids) + len(response_ids) > max_tokens:
                    num_dropped += 1
                    continue
                examples.append(SFTExample(prompt_ids, response_ids))
        if not examples:
            reason = (
                f"all {num_dropped} examples are longer than {max_tokens} tokens"
                if num_dropped
                else "no rows"
            )
            raise ValueError(f"the data set {', '.join(map(str, paths))} is empty: {reason}")
        parts = ((example.prompt_ids, example.response_ids) for example in examples)
        return SFTDataset(tuple(examples), num_dropped, fingerprint(parts))


class SFTStream:
    """Demonstrations in the order of training, resumable at any example. Endless."""

    def __init__(self, dataset: SFTDataset, seed: int, shuffle: bool = True) -> None:
        """Start at the first epoch; see `ResumableOrder` for the order."""
        self._order = ResumableOrder(dataset.examples, dataset.fingerprint, seed, shuffle)

    @property
    def epoch(self) -> int:
        """Complete passes over the data so far."""
        return self._order.epoch

    def next(self, num_examples: int) -> list[SFTExample]:
        """The next examples; more than the data set holds runs into following epochs."""
        return self._order.next(num_examples)

    def state_dict(self) -> dict[str, Any]:
        """Position and fingerprint of the data: plain JSON values."""
        return self._order.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where the state was taken. Raises ValueError when data, seed or shuffling differ."""
        self._order.load_state_dict(state)


def response_token_ids(response: str, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Tokens of a response, with exactly one end-of-sequence token, last.

    Raises:
        ValueError: the tokenizer has no end-of-sequence token.
    """
    eos = end_of_sequence(tokenizer)
    token_ids = tokenizer.encode(response, add_special_tokens=False)
    while token_ids and token_ids[-1] == eos:
        token_ids.pop()
    return (*token_ids, eos)
