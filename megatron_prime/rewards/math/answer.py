r"""The `math` verifier: compares the boxed answer of a response with the ground truth.

The answer is the last complete `\boxed{}` or `\fbox{}` (see `boxed`); without one the reward is 0. Both sides are
converted to one notation and split into alternatives, tuples, sets, intervals and units; single values are parsed
by latex2sympy and compared exactly (see `values`). The form of the ground truth defines what is asked for:

- strict: an answer has as many alternatives as the ground truth ("41 or 42" is not 42); two units must be convertible
  (`5 m` is not `5 cm`, but 500 cm); decimals are exact (0.3333333333 is not 1/3); words are compared as words ("seat"
  is not "east"), and a word after a number must be a unit; `2x = 5` is not 5; integrals and other unfinished operations
  are no answers;
- lenient: Unicode digits, fractions and powers, 3e8, thin spaces, `\varnothing`, inequalities against intervals,
  numbers in words, boxes side by side as the parts of one answer, equations times a constant.

This verifier runs in a `VerifierPool`, which enforces the deadline by killing the worker.
"""

import logging
import re
from collections.abc import Callable, Sequence

from megatron_prime.rewards.math.boxed import last_boxed, unwrap_boxed
from megatron_prime.rewards.math.clock import times_equal
from megatron_prime.rewards.math.cost import is_expensive
from megatron_prime.rewards.math.equations import (
    curves_equal,
    names_a_quantity,
    ratio_terms,
    regions_equal,
    sides_of,
    strip_assignment,
)
from megatron_prime.rewards.math.evaluated import is_unevaluated
from megatron_prime.rewards.math.families import progressions_equal, residues, residues_equal, split_parameter
from megatron_prime.rewards.math.ground_truths import alternatives
from megatron_prime.rewards.math.intervals import Interval, RealSet, merged, real_set
from megatron_prime.rewards.math.notation import (
    chosen_letter,
    chosen_letters,
    normalise,
    squeezed,
    unwrapped,
    words,
)
from megatron_prime.rewards.math.statements import (
    both_signs_equal,
    cases_equal,
    chains_equal,
    split_name,
    without_approximation,
)
from megatron_prime.rewards.math.structure import (
    matrix_vector,
    split_bracketed,
    split_items,
    unit_vector_parts,
)
from megatron_prime.rewards.math.units import DEGREE, PERCENT, RADIAN, Quantity, split_unit, sum_of_pieces
from megatron_prime.rewards.math.values import (
    evaluation_errors,
    forms_equal,
    has_operation,
    parsed,
    values_equal,
)

_LOG = logging.getLogger(__name__)

MAX_NORMALISED_CHARS = 2000
"""Limit on the length of an answer; longer answers are compared as text."""
MAX_ITEMS = 64
"""Limit on the number of alternatives or components; an answer with more is wrong."""
MAX_SIDES = 8
"""Limit on the number of sides of a chain of equations."""


class MathVerifier:
    r"""Verifier of boxed answers; see the module's docstring.

    Args:
        accept_unevaluated: Whether an answer may leave an operation to be done, as in `\gcd(54,24)` for 6.
    """

    in_process = False

    def __init__(self, accept_unevaluated: bool = False) -> None:
        self._accept_unevaluated = accept_unevaluated

    def warm_up(self) -> None:
        """Load sympy, the parser and its grammar, which takes seconds on a cold file system."""
        # The grammar's tables grow with each construction that is parsed for the first time; plain numbers need none.
        values_equal(r"\frac{x^2+1}{2}+\sqrt{3}\pi", r"\ln x-\sin(2x)")
        values_equal(r"\begin{pmatrix}1\\2\end{pmatrix}", "(a,b)")

    def verify(self, response_text: str, answer: str) -> float:
        """Return 1.0 if the boxed answer equals the ground truth or one of its alternatives, else 0.0.

        Raises:
            ValueError: If the ground truth is blank.
        """
        return self.explain(response_text, answer)[0]

    def explain(self, response_text: str, answer: str) -> tuple[float, str]:
        """Return the reward as `verify` does, and the two answers."""
        boxed = last_boxed(response_text)
        golds = alternatives(answer)
        if boxed is None:
            return 0.0, r"the response has no complete \boxed{}"
        is_right = any(
            answers_equal(unwrap_boxed(gold), boxed, accept_unevaluated=self._accept_unevaluated)
            for gold in golds
        )
        return float(is_right), f"the box has {boxed[:80]!r}, the ground truth is {answer[:80]!r}"


def answers_equal(gold: str, given: str, *, accept_unevaluated: bool = False) -> bool:
    """Return True if `given` is the answer `gold`. Not symmetric: the form of `gold` defines what is asked for."""
    if max(len(gold), len(given)) > MAX_NORMALISED_CHARS:
        return squeezed(gold) == squeezed(given)
    gold, given = normalise(gold), normalise(given)
    if r"\approx" in gold:
        # The ground truth is itself an approximation.
        gold, given = (
            re.sub(r"\\approx(?![A-Za-z])\s*", "=", text).removeprefix("=") for text in (gold, given)
        )
    else:
        given = without_approximation(given)
    if not gold or not given:
        return False
    if squeezed(gold) == squeezed(given) or unwrapped(gold) == unwrapped(given):
        return True
    # An answer that is too expensive to parse is compared as text only, which has just failed.
    if is_expensive(gold) or is_expensive(given):
        return False
    if not accept_unevaluated and is_unevaluated(gold, sides_of(given)[-1]):
        return False
    try:
        return _equal(gold, given)
    except evaluation_errors():
        _LOG.debug("no comparison of %r and %r", gold, given, exc_info=True)
        return False


def _equal(gold: str, given: str) -> bool:
    if r"\ldots" in gold + given:
        return False  # an ellipsis can be compared as text only
    if r"\emptyset" in (gold, given) and r"\{" in gold + given:
        return False  # a set with an element
    verdicts = (
        *(times_equal, _choices_equal, _words_equal, chains_equal, _cases_equal, _families_equal),
        *(_real_sets_equal, both_signs_equal),
    )
    for compare in verdicts:
        if (verdict := compare(gold, given)) is not None:
            return verdict
    # A tuple or an interval is not the answer where a set is asked for, although its parts may be equal.
    if _is_set(gold) and split_bracketed(given) is not None and not _is_set(given):
        return False
    (gold_name, gold_value), (given_name, given_value) = split_name(gold), split_name(given)
    if gold_name and given_name and gold_name != given_name:
        return False
    gold, given = _without_names(gold_value), _without_names(given_value)
    gold_items, given_items = _items(gold), _items(given)
    if len(gold_items) == 1 and len(given_items) == 1:
        return _single_equal(gold_items[0], given_items[0])
    if len(gold_items) > 1 and len(given_items) == 1 and (bracketed := split_bracketed(given)) is not None:
        # The ground truth is a list and the answer a tuple: then the order matters.
        named = _named_coordinates(gold_items)
        return _all_equal(gold_items if named is None else named, bracketed[1])
    gold_tuple = split_bracketed(gold) if len(gold_items) == 1 else None
    if gold_tuple is not None and (named := _named_coordinates(given_items)) is not None:
        return gold_tuple[0] == "(" and _all_equal(gold_tuple[1], named)
    return _same_collection(gold_items, given_items, _single_equal)


def _without_names(text: str) -> str:
    """Return the tuple in `(x, y) = (1, 2)`; any other text is returned unchanged."""
    name, value = strip_assignment(text)
    return value if name.startswith("(") else text


def _cases_equal(gold: str, given: str) -> bool | None:
    return cases_equal(gold, given, _equal)


def _named_coordinates(items: Sequence[str]) -> list[str] | None:
    """Return the values of `x=2, y=3` in the order of the names, or None unless every item names another variable."""
    pairs = [strip_assignment(item) for item in items]
    names = [name for name, _ in pairs]
    if not all(names) or len(set(names)) < len(names) or len(names) < 2:
        return None
    if all(re.fullmatch("[A-Za-z]", name) for name in names):
        pairs.sort()
    return [value for _, value in pairs]


def _families_equal(gold: str, given: str) -> bool | None:
    """Compare residue classes, and lists of values with a whole parameter; None if the ground truth is neither."""
    gold_residues, given_residues = residues(gold), residues(given)
    if gold_residues is not None and given_residues is not None:
        return residues_equal(gold_residues, given_residues)
    # The modulus may be left out, or added to the number that is asked for.
    if gold_residues is not None and "mod" in gold:
        variable, value = strip_assignment(given)
        same_name = not variable or not gold_residues.variable or variable == gold_residues.variable
        return same_name and _same_collection(gold_residues.values, split_items(value), values_equal)
    if given_residues is not None and "mod" in given:
        # 10 mod 7 is not worked out.
        is_least = all(
            re.fullmatch(r"\d{1,9}", text) and int(text) < given_residues.modulus
            for text in given_residues.values
        )
        return is_least and len(given_residues.values) == 1 and _single_equal(gold, given_residues.values[0])
    parameter, gold_body = split_parameter(gold)
    if not parameter:
        return None
    other, given_body = split_parameter(given)
    return _same_collection(
        split_items(gold_body),
        split_items(given_body),
        lambda a, b: progressions_equal(a, b, parameter, other),
    )


def _items(text: str) -> list[str]:
    r"""Return the parts of a list or of a `\{\}` set, whose order does not matter."""
    text = re.sub(r"^[A-Za-z]\s*\\in\s*(?=\\\{)", "", text)
    if _is_set(text):
        text = ",".join(part for piece in text.split(r"\cup") for part in _bracketed_parts(piece))
    if sum_of_pieces(text) is None:
        # Two things that are counted: 36 boys and 24 girls.
        text = re.sub(r"(\\text\{[^{}]*[^{}\s])\s+and\s*\}(?=\s*\d)", r"\1},", text)
    return split_items(text)


def _is_set(text: str) -> bool:
    r"""Return True for a set such as `\{1,2\}`, or a union of sets."""
    pieces = [split_bracketed(piece) for piece in text.split(r"\cup")]
    return all(piece is not None and piece[0] == r"\{" for piece in pieces)


def _bracketed_parts(text: str) -> list[str]:
    bracketed = split_bracketed(text)
    return [] if bracketed is None else bracketed[1]


def _choices_equal(gold: str, given: str) -> bool | None:
    """Compare the letters of multiple-choice options; None if the ground truth names none."""
    # A single letter A-J as ground truth is a multiple-choice question.
    if len(gold_letter := chosen_letter(gold) or "") == 1:
        return gold_letter == chosen_letter(given)
    gold_letters, given_letters = chosen_letters(gold), chosen_letters(given)
    return None if gold_letters is None or given_letters is None else gold_letters == given_letters


def _words_equal(gold: str, given: str) -> bool | None:
    r"""Compare words with words, or with one letter in any form: B, (B), `\text{B}`; None if neither side is words."""
    gold_words, given_words = words(gold), words(given)
    if gold_words is None and given_words is None:
        return None
    if gold_words is not None and given_words is not None and re.search(r",|\band\b", gold_words):
        # A list of names in any order.
        gold_list, given_list = (
            sorted(re.split(r"\s*(?:,\s*and\b|,|\band\b)\s*", side)) for side in (gold_words, given_words)
        )
        return gold_list == given_list
    return (gold_words or squeezed(gold).lower()) == (given_words or squeezed(given).lower())


def _real_sets_equal(gold: str, given: str) -> bool | None:
    """Compare two subsets of the real line; None if one side is no such subset."""
    # A name may stand before the set: D = (0, 1).
    gold_set, given_set = (real_set(text) or real_set(strip_assignment(text)[1]) for text in (gold, given))
    if gold_set is None or given_set is None:
        return None
    if gold_set.variable and given_set.variable and gold_set.variable != given_set.variable:
        return False  # inequalities in different variables
    if _is_pair(gold_set) and _is_pair(given_set):
        # One pair of brackets may as well be a point or a tuple, whose parts have any order.
        return _intervals_equal(gold_set.intervals[0], given_set.intervals[0])
    gold_parts, given_parts = merged(gold_set), merged(given_set)
    if gold_parts is not None and given_parts is not None:
        return len(gold_parts) == len(given_parts) and all(
            (a[0], a[3]) == (b[0], b[3]) and forms_equal(a[1], b[1]) and forms_equal(a[2], b[2])
            for a, b in zip(gold_parts, given_parts, strict=True)
        )
    return (
        _same_collection(gold_set.intervals, given_set.intervals, _intervals_equal)
        and _same_collection(gold_set.points, given_set.points, values_equal)
        and _same_collection(gold_set.excluded, given_set.excluded, values_equal)
    )


def _is_pair(real: RealSet) -> bool:
    return len(real.intervals) == 1 and not real.points and not real.excluded


def _intervals_equal(gold: Interval, given: Interval) -> bool:
    # The bracket at an infinite end carries no meaning, and some authors write it closed.
    low = gold[0] == given[0] or r"\infty" in gold[1]
    high = gold[3] == given[3] or r"\infty" in gold[2]
    return low and high and _single_equal(gold[1], given[1]) and _single_equal(gold[2], given[2])


def _single_equal(gold: str, given: str) -> bool:
    """Compare single values, equations, ratios or tuples."""
    if squeezed(gold) == squeezed(given):
        return True
    (gold_point, gold_value), (given_point, given_value) = split_name(gold), split_name(given)
    if gold_point or given_point:
        same_name = not gold_point or not given_point or gold_point == given_point
        return same_name and _single_equal(gold_value, given_value)
    if (as_regions := regions_equal(gold, given)) is not None:
        return as_regions
    if len(sides_of(gold)) + len(sides_of(given)) > 2:
        return _equations_equal(gold, given)
    if len(ratio_terms(gold)) + len(ratio_terms(given)) > 2:
        return _ratios_equal(ratio_terms(gold), ratio_terms(given))
    gold_tuple, given_tuple = _tuple_of(gold), _tuple_of(given)
    if any(part is not None and len(part[1]) > 1 for part in (gold_tuple, given_tuple)):
        gold_vector, given_vector = matrix_vector(gold), matrix_vector(given)
        if gold_tuple is None and gold_vector is not None:
            gold_tuple = ("(", gold_vector, ")")
        elif given_tuple is None and given_vector is not None:
            given_tuple = ("(", given_vector, ")")
        return _tuples_equal(gold_tuple, given_tuple)
    return _quantities_equal(gold, given)


def _tuple_of(text: str) -> tuple[str, list[str], str] | None:
    parts = unit_vector_parts(text)
    text = re.sub(r"(?<=\))\^\{?(?:T|\\top)\}?$", "", text)  # a column written as a row
    if parts is None and (scaled := _SCALED.fullmatch(text.strip())) is not None:
        bracketed = split_bracketed(scaled[2])
        parts = None if bracketed is None else [f"({scaled[1]})*({part})" for part in bracketed[1]]
    return split_bracketed(text) if parts is None else ("(", parts, ")")


_SCALED = re.compile(r"(-?(?:\d+|\\frac\{\d+\}\{\d+\}))\s*(?:\\cdot\s*)?(\([^()]*,[^()]*\))")
"""A number and a tuple that it multiplies."""


def _equations_equal(gold: str, given: str) -> bool:
    """Compare two answers of which at least one is an equation.

    The name of a value (`x` in `x = 5`) may be omitted, but must not be a different one.
    """
    (gold_name, gold_value), (given_name, given_value) = strip_assignment(gold), strip_assignment(given)
    if gold_name and gold_name == given_name:
        return _single_equal(gold_value, given_value) or _curves_equal(gold, given)
    gold_sides, given_sides = sides_of(gold), sides_of(given)
    if len(gold_sides) == 1:
        return _claims_equal(gold, given_sides)
    if len(given_sides) == 1:
        return names_a_quantity(gold_sides[0]) and _single_equal(
            gold_value if gold_name else gold_sides[-1], given
        )
    if {gold_name, given_name} in ({"y", "f(x)"}, {"y", "g(x)"}):
        return _single_equal(gold_value, given_value)
    if (
        gold_name
        and given_name
        and (renamed := _with_argument_of(gold_name, given_name, given_value)) is not None
    ):
        return _single_equal(gold_value, renamed)
    return _curves_equal(gold, given)


def _claims_equal(gold: str, sides: Sequence[str]) -> bool:
    r"""Compare an equation with a value: every side must be the value, except for names and operations.

    `2x = 5` is not the answer 5, since it says 2.5; `x = 5`, `f(2) = 5`, `6 \cdot 7 = 42` and `5 = x` say what they
    mean, as does an operation that is worked out, such as `\gcd(54,24) = 6`.
    """
    claims = [side for side in sides if not names_a_quantity(side)]
    if not all(sides) or not claims or len(sides) > MAX_SIDES:
        return False
    # The last claim is the result, unless the name stands behind it: 5 = x.
    return _single_equal(gold, claims[-1]) and all(
        has_operation(parsed(claim)) or _single_equal(gold, claim) for claim in claims[:-1]
    )


def _with_argument_of(gold_name: str, given_name: str, value: str) -> str | None:
    """Rename the argument in `f(t) = 2t` as in `f(x)`; None unless both are functions of that form."""
    ours, theirs = (re.fullmatch(r"([A-Za-z])\(([A-Za-z])\)", name) for name in (gold_name, given_name))
    if (
        ours is None
        or theirs is None
        or ours[1] != theirs[1]
        or re.search(rf"(?<![A-Za-z\\]){ours[2]}(?![A-Za-z])", value)
    ):
        return None
    return re.sub(rf"(?<![A-Za-z\\]){theirs[2]}(?![A-Za-z])", ours[2], value)


def _curves_equal(gold: str, given: str) -> bool:
    gold_sides, given_sides = sides_of(gold), sides_of(given)
    return len(gold_sides) == len(given_sides) == 2 and curves_equal(gold_sides, given_sides)


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


def _quantities_equal(gold_text: str, given_text: str) -> bool:
    r"""Compare values, and units if both have one. 50% equals both 50 and 0.5, 180 degrees equal \pi."""
    gold = split_unit(gold_text, is_asked_for=True)
    has_unit = gold.unit is not None and bool(gold.unit.dimensions)
    given = split_unit(given_text, is_asked_for=has_unit)
    if gold.unit is None or given.unit is None or not gold.unit.dimensions or not given.unit.dimensions:
        return _partly_named_equal(gold, given)
    if gold.unit == given.unit:
        return values_equal(gold.value, given.value)
    return (
        {gold.unit, given.unit} != {PERCENT}
        and (gold.unit.dimensions == given.unit.dimensions or {gold.unit, given.unit} == {DEGREE, RADIAN})
        and values_equal(_in_base_units(gold), _in_base_units(given))
    )


def _partly_named_equal(gold: Quantity, given: Quantity) -> bool:
    """Compare two quantities of which at most one has a unit."""
    named = gold if gold.unit is not None else given
    plain = given if named is gold else gold
    in_radians = named.unit == DEGREE and r"\pi" in plain.value
    if not in_radians and values_equal(gold.value, given.value):
        return True
    # Without a unit, an angle that contains \pi is in radians, and a percentage is a fraction.
    if named.unit != PERCENT and not in_radians:
        return False
    sides = [_in_base_units(quantity) if quantity is named else quantity.value for quantity in (gold, given)]
    return values_equal(*sides)


def _in_base_units(quantity: Quantity) -> str:
    if quantity.unit == DEGREE:
        return rf"({quantity.value})\cdot \frac{{\pi}}{{180}}"
    scale = quantity.unit.scale if quantity.unit is not None else 1
    return rf"({quantity.value})\cdot \frac{{{scale.numerator}}}{{{scale.denominator}}}"


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
