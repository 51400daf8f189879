"""Tokens that format a response and say nothing: white space, punctuation and special tokens."""

import unicodedata
from collections.abc import Sequence

import numpy as np

from megatron_prime.types import Decoder

OPERATORS = frozenset("-/*%&@")
"""Characters that Unicode counts as punctuation, and that are content in formulas and code."""
_UNKNOWN = 2


class FormatTokens:
    """Finds the tokens that only format, by their text alone.

    A token formats if decoding it gives nothing, or only white space, control characters and punctuation. Operators
    (OPERATORS, and what Unicode calls symbols, such as + = < $) do not, and neither do parts of a character.

    Args:
        tokenizer: of the responses.
    """

    def __init__(self, tokenizer: Decoder) -> None:
        self._tokenizer = tokenizer
        # Token id -> 1 or 0; a response has few of a vocabulary's tokens, so they are decoded when they first occur.
        # The last entry stays unknown and stands for all tokens behind it.
        self._table = np.full(1, _UNKNOWN, dtype=np.uint8)

    def mask(self, responses: Sequence[Sequence[int]]) -> np.ndarray:
        """Return which tokens only format, bool [B, T], false in the padding on the right."""
        found = np.zeros((len(responses), max(map(len, responses), default=0)), dtype=np.uint8)
        for row, response in enumerate(responses):
            if response:
                self._look_up(np.asarray(response, dtype=np.int32), found[row, : len(response)])
        return found.view(np.bool_)

    def _look_up(self, token_ids: np.ndarray, found: np.ndarray) -> None:
        # Several times as fast as an index, which is checked token by token.
        self._table.take(token_ids, mode="clip", out=found)
        if found.max() == _UNKNOWN:
            self._learn(token_ids)
            self._table.take(token_ids, out=found)

    def _learn(self, token_ids: np.ndarray) -> None:
        """Look up the tokens that have not occurred before."""
        missing = int(token_ids.max()) + 2 - self._table.size
        if missing > 0:
            self._table = np.pad(self._table, (0, missing), constant_values=_UNKNOWN)
        for token in np.unique(token_ids[self._table[token_ids] == _UNKNOWN]).tolist():
            text = self._tokenizer.decode([token], skip_special_tokens=True)
            self._table[token] = all(map(_formats, text))


def _formats(character: str) -> bool:
    if character.isspace():
        return True
    category = unicodedata.category(character)
    return category[0] == "C" or (category[0] == "P" and character not in OPERATORS)
