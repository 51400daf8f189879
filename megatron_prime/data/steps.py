"""Reasoning steps of a response: lines, and sentences inside a line, but never a part of a formula or of code.

Used for step granularity, step scores and reports. Sentences come from nltk's Punkt without trained data, which needs
no download: it splits at sentence-final punctuation followed by a capital or an opening, and so keeps "3.14" whole.
What it does not know is added here: abbreviations of mathematical prose, enumerators ("Step 3.", "2)", "Case (b):"),
formulas and code blocks.
"""

import re
from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer

from megatron_prime.data.whole_spans import whole_spans

_LINE = re.compile(r"[^\n]*\n*")
_ENUMERATOR = re.compile(
    r"[\s#*_>(\[-]*(?:(?:step|case|part|claim|lemma|theorem|proposition|problem|question|example|method|solution)\s*)?"
    r"[(\[]?(?:\d{1,3}|[ivx]{1,4}|[a-z])(?:\.\d{1,3})*[)\]]?[.:)]?[\s*_:]*",
    re.IGNORECASE,
)
"""All of a step that only numbers what follows."""
_ABBREVIATIONS = (
    "e.g",
    "i.e",
    "cf",
    "eq",
    "eqs",
    "fig",
    "no",
    "vs",
    "resp",
    "approx",
    "w.r.t",
    "s.t",
    "dr",
    "mr",
    "mrs",
    "st",
)
_REPLACEMENT = "\ufffd"
MAX_TOKENS_PER_CHARACTER = 4
"""UTF-8 has at most four bytes a character, so a longer wait means that the bytes are really invalid."""


class Decoder(Protocol):
    """The part of a tokenizer that turns tokens into text."""

    def decode(self, token_ids: list[int], /, *, skip_special_tokens: bool) -> str:
        """Text of token_ids."""
        ...


def step_spans(text: str) -> list[tuple[int, int]]:
    """(start, end) of each step, in characters.

    The spans cover `text` without gaps: white space belongs to the step before it, blank lines too, and leading white
    space to the first step. Text without anything but white space is one step; empty text has none. No span begins
    inside a formula or a code block (`whole_spans`), nor right behind an enumerator.
    """
    if not text:
        return []
    whole = whole_spans(text)
    whole_starts = [start for start, _ in whole]
    starts: list[int] = []
    for line in _LINE.finditer(text):
        for start, _ in _punkt().span_tokenize(line[0]):
            place = line.start() + start
            around = bisect_right(whole_starts, place) - 1
            is_inside = around >= 0 and whole[around][0] < place < whole[around][1]
            if not is_inside and not (starts and _ENUMERATOR.fullmatch(text, starts[-1], place)):
                starts.append(place)
    if not starts:
        return [(0, len(text))]
    starts[0] = 0
    return list(zip(starts, [*starts[1:], len(text)], strict=True))


def step_ids(tokenizer: Decoder, response_ids: Sequence[int]) -> list[int]:
    """Step of each token, from 0, nondecreasing; see `token_spans` for the tokens at a boundary.

    Steps that own no token get no number: the ids that occur are 0, 1, 2, ... without holes.
    """
    text = tokenizer.decode(list(response_ids), skip_special_tokens=True)
    spans = token_spans(tokenizer, response_ids, step_spans(text))
    numbers = {span: number for number, span in enumerate(sorted(set(spans)))}
    return [numbers[span] for span in spans]


def token_spans(
    tokenizer: Decoder, response_ids: Sequence[int], spans: Sequence[tuple[int, int]]
) -> list[int]:
    """Which of the spans of its text each token belongs to, nondecreasing.

    A token belongs to the span of the first character that is complete after it and was not before; a token that
    completes none (part of a multi-byte character, a special token without text) goes with the text that follows it,
    or, at the end, with the last span. A token that lies over a boundary belongs to the span it begins in.

    Args:
        tokenizer: turns tokens into text.
        response_ids: tokens of the response.
        spans: (start, end) in characters, covering the text without gaps.
    """
    ends = _decoded_lengths(tokenizer, response_ids)
    text = tokenizer.decode(list(response_ids), skip_special_tokens=True)
    found: list[int] = []
    span = 0
    start = 0
    for end in ends:
        # Leading white space of a token (" Then") already belongs to the step before; judge by what it says.
        visible = start
        while visible < end and visible < len(text) and text[visible].isspace():
            visible += 1
        place = visible if visible < end else start
        while span + 1 < len(spans) and place >= spans[span][1]:
            span += 1
        found.append(span)
        start = end
    return found


def _decoded_lengths(tokenizer: Decoder, response_ids: Sequence[int]) -> list[int]:
    """Characters of text complete after each token.

    Decodes a short window that moves along, as streaming servers do, so that the cost is linear. A window whose text
    ends in the replacement character stops inside a multi-byte character, and its length is not trusted: the token
    counts for nothing yet. A response that really contains that character is settled when the window closes.
    """
    lengths: list[int] = []
    complete = 0
    prefix = 0
    read = 0
    for position in range(1, len(response_ids) + 1):
        # Text of [prefix, read) is known; the difference is what the tokens since `read` add, with their spacing.
        known = tokenizer.decode(list(response_ids[prefix:read]), skip_special_tokens=True)
        window = tokenizer.decode(list(response_ids[prefix:position]), skip_special_tokens=True)
        is_cut = window.endswith(_REPLACEMENT) and position - read < MAX_TOKENS_PER_CHARACTER
        if len(window) > len(known) and not is_cut:
            complete += len(window) - len(known)
            prefix, read = read, position
        lengths.append(complete)
    return lengths


@lru_cache(maxsize=1)
def _punkt() -> PunktSentenceTokenizer:
    parameters = PunktParameters()
    parameters.abbrev_types.update(_ABBREVIATIONS)
    return PunktSentenceTokenizer(parameters)
