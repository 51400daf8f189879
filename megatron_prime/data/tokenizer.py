"""The tokenizer of a checkpoint and the tokens that end a response."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase


def load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer saved in a checkpoint directory, without contacting a hub.

    Raises:
        ValueError: If there is no such directory, or its tokenizer is missing, cannot be loaded by transformers, or has
            no end-of-sequence token.
    """
    if not path.is_dir():
        raise ValueError(
            f"model.path {path} is not a directory: set it to a local HF checkpoint with its tokenizer"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    except Exception as error:
        names = sorted(entry.name for entry in path.iterdir())
        # Messages of transformers span several lines, and a fault should be one line.
        reason = " ".join(str(error).split()).rstrip(".")
        raise ValueError(
            f"no tokenizer can be loaded from {path}: {reason}. The directory holds {names}; copy tokenizer.json and "
            "tokenizer_config.json there"
        ) from error
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"the tokenizer in {path} has no end-of-sequence token: set eos_token in tokenizer_config.json"
        )
    return tokenizer


def end_of_sequence(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id of the tokenizer's end-of-sequence token. Raises ValueError if it has none."""
    token_id = tokenizer.eos_token_id
    if not isinstance(token_id, int):
        raise ValueError(
            f"the tokenizer's end-of-sequence token has id {token_id}: set eos_token in tokenizer_config.json"
        )
    return token_id


def encode(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], add_special_tokens: bool = False
) -> list[list[int]]:
    """Return the token ids of each text, neither truncated nor padded.

    Raises:
        ValueError: If the tokenizer fails on a text.
    """
    try:
        # Switched off explicitly: a tokenizer file may enable truncation or padding.
        batch = tokenizer(list(texts), add_special_tokens=add_special_tokens, truncation=False, padding=False)
    except Exception as error:  # a tokenizer is native code, which raises plain exceptions
        raise ValueError(f"the tokenizer fails on it: {type(error).__name__}: {error}") from error
    except BaseException as error:
        # A panic of a tokenizer written in Rust; its class is not an Exception and cannot be imported.
        if type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"the tokenizer fails on it: {error}") from error
    return [list(ids) for ids in batch["input_ids"]]


def response_token_ids(responses: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[tuple[int, ...]]:
    """Tokenize responses so that each ends with exactly one end-of-sequence token.

    Raises:
        ValueError: If the tokenizer has no end-of-sequence token or fails, or a response has no tokens or continues
            behind an end-of-sequence token.
    """
    eos = end_of_sequence(tokenizer)
    word = str(tokenizer.eos_token)
    return [
        _ended(token_ids, eos, word)
        for token_ids in encode(tokenizer, [_without_end(response, word) for response in responses])
    ]


def _without_end(response: str, word: str) -> str:
    """Return a response without the end-of-sequence tokens that its text spells out, and the lines behind them."""
    while (bare := response.rstrip()).endswith(word):
        response = bare.removesuffix(word)
    return response


def _ended(token_ids: list[int], eos: int, word: str) -> tuple[int, ...]:
    while token_ids and token_ids[-1] == eos:
        token_ids.pop()
    if not token_ids:
        raise ValueError("the response has no tokens")
    if eos in token_ids:
        raise ValueError(f"the response continues behind an end-of-sequence token ({word})")
    return (*token_ids, eos)


def stop_token_ids(tokenizer: PreTrainedTokenizerBase, path: Path) -> tuple[int, ...]:
    """Return the tokens that end a response, ascending.

    They are the tokenizer's end-of-sequence token and those of generation_config.json in `path`: chat models use more
    than one (Qwen2.5: `<|im_end|>` and `<|endoftext|>`).

    Raises:
        ValueError: If generation_config.json is not JSON or its eos_token_id values are not integers.
    """
    stop = {end_of_sequence(tokenizer)}
    generation_config = path / "generation_config.json"
    if generation_config.is_file():
        stop.update(_eos_of(generation_config))
    return tuple(sorted(stop))


def vocabulary_fault(
    tokenizer: PreTrainedTokenizerBase, stop_token_ids: Sequence[int], vocab_size: int
) -> str | None:
    """Return why a tokenizer does not belong to a model with this vocabulary; None if it may.

    Added tokens, such as padding, may lie outside of the vocabulary as long as they end no response.
    """
    of_tokens: Any = tokenizer
    added = set(of_tokens.get_added_vocab().values())
    highest = max(set(of_tokens.get_vocab().values()) - added | set(stop_token_ids))
    if highest < vocab_size:
        return None
    return (
        f"the tokenizer has token {highest}, but the model's vocab_size is {vocab_size}: tokenizer and weights are of "
        "different models"
    )


def _eos_of(generation_config: Path) -> list[int]:
    try:
        fields: Any = json.loads(generation_config.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{generation_config} is not JSON: {error}") from error
    value = fields.get("eos_token_id") if isinstance(fields, dict) else None
    if value is None:
        return []
    values = value if isinstance(value, list) else [value]
    # bool is a subclass of int: true would pass as token 1.
    if any(isinstance(token, bool) or not isinstance(token, int) for token in values):
        raise ValueError(
            f"{generation_config}: eos_token_id = {value!r} must be an integer or a list of integers"
        )
    return values
