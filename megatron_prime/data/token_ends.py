"""The place of each token in the text of a response.

A token alone has no text: it may hold a part of a character, and some tokenizers put a blank before all words but the
first. The text that a token adds is that of a few tokens minus that of all but the last.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import cast
from weakref import WeakKeyDictionary

from megatron_prime.types import Decoder

_REPLACEMENT = "\ufffd"
MAX_TOKENS_PER_CHARACTER = 4
"""Limit on the tokens of one character: UTF-8 has at most four bytes, so after four tokens the bytes are invalid."""


def decoded_lengths(tokenizer: Decoder, response_ids: Sequence[int], text: str) -> list[int]:
    """Return the number of characters that are complete after each token; `text` is that of all tokens."""
    lengths = _lengths_by_token(tokenizer, response_ids, text)
    return _lengths_by_windows(tokenizer, response_ids) if lengths is None else lengths


@dataclass(slots=True)
class _Added:
    """The text that each token adds behind a certain token."""

    before: int
    text_before: str
    texts: dict[int, str] = field(default_factory=dict)
    """Without the tokens that end within a character."""

    def by(self, tokenizer: Decoder, token_ids: Sequence[int]) -> str:
        """Return the text that some tokens add."""
        if len(token_ids) > 1:
            return self._decoded(tokenizer, token_ids)
        token = token_ids[0]
        text = self.texts.get(token)
        if text is None:
            text = self._decoded(tokenizer, token_ids)
            if not text.endswith(_REPLACEMENT):
                self.texts[token] = text
        return text

    def _decoded(self, tokenizer: Decoder, token_ids: Sequence[int]) -> str:
        text = tokenizer.decode([self.before, *token_ids], skip_special_tokens=True)
        # Some tokenizers tidy up blanks around punctuation, after which nothing adds up.
        return text.removeprefix(self.text_before) if text.startswith(self.text_before) else _REPLACEMENT


_ADDED: WeakKeyDictionary[Decoder, _Added] = WeakKeyDictionary()
"""Texts of the tokens seen so far: tokens occur again and again, and decoding one is slow."""


def _added(tokenizer: Decoder, response_ids: Sequence[int]) -> _Added | None:
    """Return the known texts of a tokenizer; None if no token of its first response shows text of its own."""
    known = _ADDED.get(tokenizer)
    if known is not None:
        return known
    for token in response_ids:
        text = tokenizer.decode([token], skip_special_tokens=True)
        if text.strip() and _REPLACEMENT not in text:
            _ADDED[tokenizer] = known = _Added(token, text)
            return known
    return None


def _lengths_by_token(tokenizer: Decoder, response_ids: Sequence[int], text: str) -> list[int] | None:
    """Add up the texts of the tokens, and compare them with the whole text; None if they do not agree."""
    added = _added(tokenizer, response_ids)
    if added is None:
        return None

    def text_of(token_ids: Sequence[int]) -> str:
        if complete:
            return added.by(tokenizer, token_ids)
        return tokenizer.decode(
            list(token_ids), skip_special_tokens=True
        )  # nothing stands before the first text

    known = [*map(added.texts.get, response_ids), None]
    lengths: list[int] = []
    complete = 0
    first = 0
    while first < len(response_ids):
        end = first + 1
        if complete and known[first] is not None:  # the usual case: many known tokens, in few operations
            end = known.index(None, first)
            run = cast("list[str]", known[first:end])
            if not text.startswith("".join(run), complete):
                return None
            lengths += list(accumulate(map(len, run), initial=complete))[1:]
            complete = lengths[-1]
            first = end
            continue
        piece = text_of(response_ids[first:end])
        while (
            piece.endswith(_REPLACEMENT)
            and end - first < MAX_TOKENS_PER_CHARACTER
            and end < len(response_ids)
        ):
            end += 1  # A character may take several tokens.
            piece = text_of(response_ids[first:end])
        is_cut = piece.endswith(_REPLACEMENT) and end - first < MAX_TOKENS_PER_CHARACTER
        if is_cut:  # the response ends within a character
            lengths += [complete] * (end - first)
            return lengths if set(text[complete:]) <= {_REPLACEMENT} else None
        if not text.startswith(piece, complete):
            return None
        lengths += [complete] * (end - first - 1)
        complete += len(piece)
        lengths.append(complete)
        first = end
    return lengths if complete == len(text) else None


def _lengths_by_windows(tokenizer: Decoder, response_ids: Sequence[int]) -> list[int]:
    """Decode a short sliding window, as streaming servers do, so that the cost is linear in the number of tokens.

    If the text of the window ends in the replacement character, the window ends inside a multi-byte character, and its
    last token adds no characters yet. A response that really contains the replacement character is resolved after
    MAX_TOKENS_PER_CHARACTER tokens.
    """
    lengths: list[int] = []
    complete = 0
    prefix = 0
    read = 0
    for position in range(1, len(response_ids) + 1):
        # The text of [prefix, read) is already counted. Decoding the longer window with the same prefix yields what
        # the tokens since `read` add, including the spacing that depends on the tokens before them.
        known = tokenizer.decode(list(response_ids[prefix:read]), skip_special_tokens=True)
        window = tokenizer.decode(list(response_ids[prefix:position]), skip_special_tokens=True)
        is_cut = window.endswith(_REPLACEMENT) and position - read < MAX_TOKENS_PER_CHARACTER
        if len(window) > len(known) and not is_cut:
            complete += len(window) - len(known)
            prefix, read = read, position
        elif window == known:
            read = position  # A token without text, such as a special one, is no part of the next character.
        lengths.append(complete)
    return lengths
