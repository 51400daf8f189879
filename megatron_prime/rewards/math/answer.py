r"""The `math` verifier: compares the boxed answer of a response with the ground truth.

The answer is the last complete `\boxed{}` or `\fbox{}` (see `boxed`); without one the reward is 0. Both sides are
converted to one notation and split into alternatives, tuples, sets, intervals and units; single values are compared
exactly by math-verify. Where math-verify alone would be wrong, this verifier is

- stricter: an answer has as many alternatives as the ground truth ("41 or 42" is not 42); two units must agree
  (`5 m` is not `5 cm`); decimals are exact (0.3333333333 is not 1/3, 1.41421356 is not the root of 2); words are
  compared as words ("seat" is not "east");
- more lenient: Unicode digits, fractions and powers, 3e8, thin spaces, `\varnothing`, inequalities against intervals,
  boxes side by side as the parts of one answer.

math-verify's own time limits are switched off, because they use SIGALRM, which fails outside the main thread and
replaces the caller's alarm. This verifier runs in a `VerifierPool`, which enforces the deadline by killing the worker.
"""

import logging
import re
from collections.abc import Callable, Sequence
from typing import Any

from megatron_prime.rewards.math.boxed import last_boxed, unwrap_boxed
from megatron_prime.rewards.math.cost import is_expensive
from megatron_prime.rewards.math.equations import (
    difference_of,
    names_a_quantity,
    ratio_terms,
    sides_of,
    strip_assignment,
)
from megatron_prime.rewards.math.intervals import Interval, real_set
from megatron_prime.rewards.math.notation import (
    chosen_letter,
    exact_decimals,
    normalise,
    squeezed,
    unwrapped,
    words,
)
from megatron_prime.rewards.math.structure import (
    Quantity,
    split_bracketed,
    split_items,
    split_unit,
)

MAX_NORMALISED_CHARS = 2000
"""Limit on the length of an answer; longer answers are compared as text."""
MAX_ITEMS = 64
"""Limit on the number of alternatives or components; an answer with more is wrong."""


class MathVerifier:
    """Verifier of boxed answers; see the module's docstring."""

    in_process = False

    def warm_up(self) -> None:
        """Load sympy and the parser's grammar, which takes seconds on a cold file system."""
        values_equal("1", r"\frac{2}{2}")

    def verify(self, response_text: str, answer: str) -> float:
        """Return 1.0 if the boxed answer equals the ground truth, else 0.0.

        Raises:
            ValueError: If the ground truth is blank.
        """
        if not answer.strip():
            raise ValueError("the ground truth is blank")
        boxed = last_boxed(response_text)
        return 0.0 if boxed is None else float(answers_equal(unwrap_boxed(answer), boxed))


def answers_equal(gold: str, given: str) -> bool:
    """Return True if `given` is the answer `gold`. Not symmetric: the form of `gold` defines what is asked for."""
    if max(len(gold), len(given)) > MAX_NORMALISED_CHARS:
        return squeezed(gold) == squeezed(given)
    gold, given = normalise(gold), normalise(given)
    if not gold or not given:
        return False
    if squeezed(gold) == squeezed(given) or unwrapped(gold) == unwrapped(given):
        return True
    # An answer that is too expensive to evaluate is compared as text only, which has just failed.
    return not (is_expensive(gold) or is_expensive(given)) and _equal(gold, given)


def _equal(gold: str, given: str) -> bool:
    if r"\ldots" in gold + given:
        return False  # an ellipsis can be compared as text only
    # A single letter A-J as ground truth is a multiple-choice question.
    if len(gold_letter := chosen_letter(gold) or "") == 1:
        return gold_letter == chosen_letter(given)
    gold_words, given_words = words(gold), words(given)
    if gold_words is not None or given_words is not None:
        return _words_equal(gold, given, gold_words, given_words)
    if (as_sets := _real_sets_equal(gold, given)) is not None:
        return as_sets
    # A tuple or an interval is not the answer where a set is asked for, although its parts may be equal.
    if _is_set(gold) and split_bracketed(given) is not None and not _is_set(given):
        return False
    gold_items, given_items = _items(gold), _items(given)
    if len(gold_items) == 1 and len(given_items) == 1:
        return _single_equal(gold_items[0], given_items[0])
    if len(gold_items) > 1 and len(given_items) == 1 and (bracketed := split_bracketed(given)) is not None:
        # The ground truth is a list and the answer a tuple: then the order matters.
        return _all_equal(gold_items, bracketed[1])
    return _same_collection(gold_items, given_items, _single_equal)


def _items(text: str) -> list[str]:
    r"""Return the parts of a list or of a `\{\}` set, whose order does not matter."""
    if _is_set(text):
        text = ",".join(part for piece in text.split(r"\cup") for part in _bracketed_parts(piece))
    return split_items(text)


def _is_set(text: str) -> bool:
    r"""Return True for a set such as `\{1,2\}`, or a union of sets."""
    pieces = [split_bracketed(piece) for piece in text.split(r"\cup")]
    return all(piece is not None and piece[0] == r"\{" for piece in pieces)


def _bracketed_parts(text: str) -> list[str]:
    bracketed = split_bracketed(text)
    return [] if bracketed is None else bracketed[1]


def _words_equal(gold: str, given: str, gold_words: str | None, given_words: str | None) -> bool:
    r"""Compare words with words, or with one letter in any form: B, (B), `\text{B}`."""
    return (gold_words or squeezed(gold).lower()) == (given_words or squeezed(given).lower())


def _real_sets_equal(gold: str, given: str) -> bool | None:
    """Compare two unions of intervals; None if one side is not such a union."""
    gold_set, given_set = real_set(gold), real_set(given)
    if gold_set is None or given_set is None:
        return None
    if gold_set[0] and given_set[0] and gold_set[0] != given_set[0]:
        return False  # inequalities in different variables
    return _same_collection(gold_set[1], given_set[1], _intervals_equal)


def _intervals_equal(gold: Interval, given: Interval) -> bool:
    # The bracket at an infinite end carries no meaning, and some authors write it closed.
    low = gold[0] == given[0] or r"\infty" in gold[1]
    high = gold[3] == given[3] or r"\infty" in gold[2]
    return low and high and _single_equal(gold[1], given[1]) and _single_equal(gold[2], given[2])


def _single_equal(gold: str, given: str) -> bool:
    """Compare single values, equations, ratios or tuples."""
    if squeezed(gold) == squeezed(given):
        return True
    if len(sides_of(gold)) + len(sides_of(given)) > 2:
        return _equations_equal(gold, given)
    if len(ratio_terms(gold)) + len(ratio_terms(given)) > 2:
        return _ratios_equal(ratio_terms(gold), ratio_terms(given))
    gold_tuple, given_tuple = split_bracketed(gold), split_bracketed(given)
    if any(part is not None and len(part[1]) > 1 for part in (gold_tuple, given_tuple)):
        return _tuples_equal(gold_tuple, given_tuple)
    return _quantities_equal(split_unit(gold), split_unit(given))


def _equations_equal(gold: str, given: str) -> bool:
    """Compare two answers of which at least one is an equation.

    The name of a value (`x` in `x = 5`) may be omitted, but must not be a different one.
    """
    (gold_name, gold_value), (given_name, given_value) = strip_assignment(gold), strip_assignment(given)
    if gold_name and gold_name == given_name:
        return _single_equal(gold_value, given_value)
    gold_sides, given_sides = sides_of(gold), sides_of(given)
    if len(gold_sides) == 1:
        # Every side of a numeric chain must be right: "41 = 42" is not an answer of 42.
        if not re.search("[A-Za-z]", given_sides[0]):
            return all(_single_equal(gold, side) for side in given_sides)
        claims = [given_value] if given_name else given_sides[1:]
        return all(_single_equal(gold, claim) for claim in claims)
    if len(given_sides) == 1:
        return names_a_quantity(gold_sides[0]) and _single_equal(
            gold_value if gold_name else gold_sides[-1], given
        )
    if len(gold_sides) != 2 or len(given_sides) != 2:
        return False
    # Two equations are equal if they set the same expression to zero, up to its sign.
    difference, other = difference_of(gold_sides), difference_of(given_sides)
    return values_equal(difference, other) or values_equal(difference, f"-({other})")


def _ratios_equal(gold: Sequence[str], given: Sequence[str]) -> bool:
    """Compare the proportions of two ratios; a ratio of two terms is also a fraction."""
    if {len(gold), len(given)} == {1, 2}:
        gold, given = (
            [rf"\frac{{{terms[0]}}}{{{terms[1]}}}"] if len(terms) == 2 else terms for terms in (gold, given)
        )
    if len(gold) != len(given):
        return False
    if len(gold) == 1:
        return _single_equal(gold[0], given[0])
    # Cross-multiplied, a : gold[0] = b : given[0], which avoids divisions by zero.
    return all(
        values_equal(f"({a})*({given[0]})", f"({gold[0]})*({b})") for a, b in zip(gold, given, strict=True)
    )


def _tuples_equal(gold: tuple[str, list[str], str] | None, given: tuple[str, list[str], str] | None) -> bool:
    if gold is None or given is None or (gold[0], gold[2]) != (given[0], given[2]):
        return False
    if gold[0] == r"\{":
        return _same_collection(gold[1], given[1], _single_equal)
    return _all_equal(gold[1], given[1])


def _quantities_equal(gold: Quantity, given: Quantity) -> bool:
    """Compare values, and units if both have one. 50% equals both 50 and 0.5."""
    if gold.unit and given.unit and gold.unit != given.unit:
        return False
    if values_equal(gold.value, given.value):
        return True
    if "%" not in (gold.unit, given.unit) or gold.unit == given.unit:
        return False
    # One side is a percentage and the other a plain number: compare again with the percentage divided by 100.
    gold_value, given_value = (
        rf"\frac{{{quantity.value}}}{{100}}" if quantity.unit else quantity.value
        for quantity in (gold, given)
    )
    return values_equal(gold_value, given_value)


def values_equal(gold: str, given: str) -> bool:
    """Return True if two expressions are exactly equal by math-verify."""
    if squeezed(gold) == squeezed(given):
        return True
    if r"\text{" in gold + given:
        return False  # math-verify ignores words
    # Imported here because it loads slowly and the parent of the pool never needs it.
    from math_verify import LatexExtractionConfig, parse, verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # silences warnings that its time limits are off
    parsed = [
        parse(
            f"${exact_decimals(text)}$",
            extraction_config=[LatexExtractionConfig()],
            # By default, math-verify also returns the unparsed text, and would compare texts where parsing failed.
            fallback_mode="no_fallback",
            parsing_timeout=None,  # type: ignore[arg-type]
        )
        for text in (gold, given)
    ]
    if not (parsed[0] and parsed[1]):
        return False
    if verify(parsed[0], parsed[1], timeout_seconds=None):
        return True
    if not _has_imaginary_unit(gold + given):
        return False
    complex_gold, complex_given = ([_with_imaginary_unit(form) for form in forms] for forms in parsed)
    return bool(verify(complex_gold, complex_given, timeout_seconds=None))


def _has_imaginary_unit(text: str) -> bool:
    return re.search(r"(?<![A-Za-z\\])i(?![A-Za-z_])", text) is not None


def _with_imaginary_unit(expression: Any) -> Any:  # noqa: ANN401 - a sympy expression or text
    """Replace the variable `i` by the imaginary unit: math-verify parses it as an ordinary variable."""
    import sympy

    if not isinstance(expression, sympy.Basic):
        return expression
    units = [symbol for symbol in expression.free_symbols if str(symbol) == "i"]
    return expression.subs(dict.fromkeys(units, sympy.I))


def _all_equal(gold: Sequence[str], given: Sequence[str]) -> bool:
    if len(gold) != len(given) or len(gold) > MAX_ITEMS:
        return False
    return all(_single_equal(a, b) for a, b in zip(gold, given, strict=True))


def _same_collection(gold: Sequence, given: Sequence, equal: Callable[..., bool]) -> bool:  # type: ignore[type-arg]
    """Return True if each item of `gold` equals a different item of `given`, in any order, and none remains."""
    if len(gold) != len(given) or len(gold) > MAX_ITEMS:
        return False
    unmatched = list(given)
    for item in gold:
        match = next((index for index, other in enumerate(unmatched) if equal(item, other)), None)
        if match is None:
            return False
        del unmatched[match]
    return True
