"""Splits a response into reasoning steps: lines, and sentences within a line, but never inside a formula or code.

Steps are used for step-level process rewards, step scores and reports. Sentences come from nltk's Punkt tokenizer
without trained data, so that nothing has to be downloaded: it splits at sentence-final punctuation followed by a
capital or an opening bracket, and keeps "3.14" whole. This module adds what it does not know: abbreviations of
mathematical prose, enumerators ("Step 3.", "2)", "Case (b):"), formulas and code blocks.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer

from megatron_prime.data.token_ends import decoded_lengths
from megatron_prime.data.whole_spans import whole_spans
from megatron_prime.types import Decoder

_LINE = re.compile(r"[^\n]*\n*")
_ENUMERATOR = re.compile(
    r"[\s#*_>(\[-]*(?:(?:step|case|part|claim|lemma|theorem|proposition|problem|question|example|method|solution)\s*)?"
    r"[(\[]?(?:\d{1,3}|[ivx]{1,4}|[a-z])(?:\.\d{1,3})*[)\]]?[.:)]?[\s*_:]*",
    re.IGNORECASE,
)
"""Matches a text that only numbers the step after it, such as "Step 3." or "(b)"."""
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


def step_spans(text: str) -> list[tuple[int, int]]:
    """Return (start, end) in characters of each step.

    The spans cover `text` without gaps: white space, including blank lines, belongs to the step before it, and leading
    white space to the first step. Blank text is one step; empty text has none. No span starts inside a formula or code
    block (`whole_spans`), or directly after an enumerator.
    """
    if not text:
        return []
    whole = whole_spans(text)
    whole_starts = [start for start, _ in whole]
    starts: list[int] = []
    for line in _LINE.finditer(text):
        for start, _ in _punkt().span_tokenize(line[0]):
            position = line.start() + start
            nearest = bisect_right(whole_starts, position) - 1
            # A start directly after an enumerator is skipped too, which joins "Step 3." with the step that it
            # numbers.
            is_inside = nearest >= 0 and whole[nearest][0] < position < whole[nearest][1]
            if not is_inside and not (starts and _ENUMERATOR.fullmatch(text, starts[-1], position)):
                starts.append(position)
    if not starts:
        return [(0, len(text))]
    starts[0] = 0  # leading white space belongs to the first step
    return list(zip(starts, [*starts[1:], len(text)], strict=True))


def step_ids(tokenizer: Decoder, response_ids: Sequence[int]) -> list[int]:
    """Return the step of each token, numbered from 0 and nondecreasing.

    See `token_spans` for the tokens at a boundary. Steps without a token get no number, so that the ids that occur are
    0, 1, 2, ... without gaps.
    """
    text = tokenizer.decode(list(response_ids), skip_special_tokens=True)
    return step_ids_of(text, decoded_lengths(tokenizer, response_ids, text))


def step_ids_of(text: str, lengths: Sequence[int]) -> list[int]:
    """Return `step_ids` of a text whose tokens complete these numbers of characters."""
    spans = _spans_of(text, lengths, step_spans(text))
    numbers = {span: number for number, span in enumerate(sorted(set(spans)))}
    return [numbers[span] for span in spans]


def token_spans(
    tokenizer: Decoder, response_ids: Sequence[int], spans: Sequence[tuple[int, int]]
) -> list[int]:
    """Return the index of the text span that each token belongs to, nondecreasing.

    A token belongs to the span of the first character that it completes. A token that completes none (part of a
    multi-byte character, or a special token without text) belongs to the span of the text that follows it, or to the
    last span at the end. A token across a boundary belongs to the span in which it starts.

    Args:
        tokenizer: Decodes tokens to text.
        response_ids: Tokens of the response.
        spans: (start, end) in characters, covering the text without gaps.
    """
    text = tokenizer.decode(list(response_ids), skip_special_tokens=True)
    return _spans_of(text, decoded_lengths(tokenizer, response_ids, text), spans)


def _spans_of(text: str, ends: Sequence[int], spans: Sequence[tuple[int, int]]) -> list[int]:
    if not ends:
        return []
    # Spans are far fewer than tokens, so the first token of each is searched for.
    starts = [0, *ends[:-1]]
    firsts = [0]
    for begin, _ in spans[1:]:
        first = bisect_left(starts, begin)
        # The leading blank of a token such as " Then" belongs to the step before: its first visible character counts.
        if first and begin < ends[first - 1] and text[starts[first - 1] : begin].isspace():
            first -= bool(text[begin : ends[first - 1]].strip())
        firsts.append(first)
    numbers = [end - first for first, end in pairwise([*firsts, len(ends)])]
    return [span for span, number in enumerate(numbers) for _ in range(number)]


@lru_cache(maxsize=1)
def _punkt() -> PunktSentenceTokenizer:
    parameters = PunktParameters()
    parameters.abbrev_types.update(_ABBREVIATIONS)
    return PunktSentenceTokenizer(parameters)
