"""Compares values exactly: rational numbers by arithmetic, others with many digits, expressions at several points.

latex2sympy parses a value without evaluating it. Nothing is rounded to a fixed number of decimals, so that values of
any size are distinguished. An identity is tested at points, which takes milliseconds where simplification takes
minutes.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from megatron_prime.rewards.math.cost import MAX_BITS, num_bits
from megatron_prime.rewards.math.notation import exact_decimals, squeezed

MIN_DIGITS = 60
"""Number of digits with which values that are not rational are compared, relative to their size."""
MAX_DIGITS = 4000
"""Limit on the number of digits; numbers that need more are not compared."""
GUARD_DIGITS = 15
"""Number of last digits that may differ by rounding."""
MIN_POINTS = 3
"""Number of points at which the ground truth must be defined for two expressions to be called equal."""

_PLAIN = re.compile(
    r"(?P<sign>-)?\s*(?:(?P<whole>\d{1,400})|\\frac\s*\{\s*(?P<numerator>-?\d{1,400})\s*\}\s*\{\s*(?P<denominator>\d{1,400})\s*\})"
)
_FRACTIONS = (
    (37, 41),
    (-53, 29),
    (71, 67),
    (-19, 23),
    (101, 43),
    (-89, 61),
    (31, 59),
    (-113, 47),
    (7, 79),
    (97, 17),
)
_WHOLE = (3, 2, 5, 4, 6, 1)


def values_equal(gold: str, given: str) -> bool:
    """Return True if two expressions have the same value."""
    if squeezed(gold) == squeezed(given):
        return True
    left, right = parsed(gold), parsed(given)
    return left is not None and right is not None and forms_equal(left, right)


@lru_cache(maxsize=256)
def parsed(text: str) -> Any:  # noqa: ANN401 - a sympy expression, set, relation or matrix
    """Return the sympy form of an expression, unevaluated; None if it is no mathematics.

    Words and primes are refused, because the parser reads words as products of letters and drops primes. So are
    numbers side by side, which it adds, and numerals with a base.
    """
    text = re.sub(r"([_^])\s*(\d)(?=\s)", r"\1{\2}", text)
    if (
        re.search(r"\\(?:text|approx|sim|simeq|cong|propto)(?![A-Za-z])|'", text)
        or not text.strip()
        or re.search(r"\d\s+\d|\d_", text)
    ):
        return None
    # Imported here because it loads slowly and the parent of the pool never needs it.
    import sympy
    from latex2sympy2_extended import NormalizationConfig, latex2sympy, normalize_latex
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig

    text = exact_decimals(text)
    if plain := _PLAIN.fullmatch(text.strip()):
        terms = int(plain["numerator"] or plain["whole"]), int(plain["denominator"] or 1)
        return (-1 if plain["sign"] else 1) * sympy.Rational(*terms) if terms[1] else None
    # The parser knows no degrees, which only remain within functions.
    text = re.sub(r"\s*\\degree", r"\\cdot\\frac{\\pi}{180}", text)
    # The parser takes 2(3) for the mixed number 2 + 3.
    text = re.sub(r"(?<=\d)\s*\(", r"\\cdot (", text)
    syntax = NormalizationConfig(nits=False, boxed="none", malformed_operators=True)
    try:
        form = latex2sympy(
            normalize_latex(text, syntax),
            is_real=True,
            normalization_config=None,
            conversion_config=ConversionConfig(lowercase_symbols=False),
        )
    except Exception:  # noqa: BLE001 - the parser raises bare exceptions for every text that it does not take
        return None
    return _with_real_roots(_with_imaginary_unit(_unwrapped(form)), is_written_as_root=r"\sqrt[" in text)


def _unwrapped(form: Any) -> Any:  # noqa: ANN401
    """Return the element of a set that only the parser made of a value in braces."""
    import sympy

    while isinstance(form, sympy.FiniteSet) and len(form.args) == 1:
        form = form.args[0]
    return form


def _with_imaginary_unit(form: Any) -> Any:  # noqa: ANN401
    """Replace the variable `i` by the imaginary unit: the parser takes it for an ordinary variable."""
    units = [symbol for symbol in getattr(form, "free_symbols", ()) if symbol.name == "i"]
    if not units:
        return form
    import sympy

    return form.xreplace(dict.fromkeys(units, sympy.I))


def _with_real_roots(form: Any, *, is_written_as_root: bool) -> Any:  # noqa: ANN401 - a sympy expression
    r"""Take odd roots of negative numbers as real, as `\sqrt[3]{-8} = -2`; and of differences, for one form of both."""
    if not hasattr(form, "replace") or not hasattr(form, "is_Pow"):
        return form

    def is_odd_root(part: Any) -> bool:  # noqa: ANN401
        return bool(
            part.is_Pow
            and part.exp.is_Rational
            and part.exp.q % 2 == 1
            and part.exp.q > 1
            and (
                part.base.could_extract_minus_sign()
                if part.free_symbols
                else is_written_as_root and part.base.is_negative
            )
        )

    return form.replace(is_odd_root, lambda part: (-1) ** part.exp.p * (-part.base) ** part.exp)


def forms_equal(gold: Any, given: Any) -> bool:  # noqa: ANN401
    """Return True if two parsed expressions, matrices or sets are equal."""
    import sympy

    gold, given = (form.doit() if isinstance(form, sympy.MatrixExpr) else form for form in (gold, given))
    if isinstance(gold, sympy.MatrixBase) or isinstance(given, sympy.MatrixBase):
        return (
            isinstance(gold, sympy.MatrixBase)
            and isinstance(given, sympy.MatrixBase)
            and gold.shape == given.shape
            and all(map(forms_equal, gold.flat(), given.flat()))
        )
    if not isinstance(gold, sympy.Expr) or not isinstance(given, sympy.Expr):
        return bool(gold == given)
    if max(num_bits(gold), num_bits(given)) > MAX_BITS:
        return _powers_equal(gold, given)
    if gold.free_symbols or given.free_symbols:
        # A number that contains variables is not worked out, even if they cancel.
        return bool(gold.free_symbols) and _identical(gold, given)
    return _numbers_equal(gold, given)


def has_operation(form: Any) -> bool:  # noqa: ANN401
    """Return True for an expression without variables whose value is an operation's result, such as an integral."""
    import sympy

    operations = (
        sympy.Integral,
        sympy.Sum,
        sympy.Product,
        sympy.Limit,
        sympy.Derivative,
        sympy.UnevaluatedExpr,
    )
    return isinstance(form, sympy.Expr) and not form.free_symbols and form.has(*operations)


def number(form: Any) -> Any | None:  # noqa: ANN401
    """Return the evaluated real number or infinity, or None for anything else."""
    import sympy

    if not isinstance(form, sympy.Expr) or form.free_symbols or num_bits(form) > MAX_BITS:
        return None
    value = form.doit()
    return value if value.is_extended_real and (value.is_comparable or value.is_infinite) else None


def _numbers_equal(gold: Any, given: Any) -> bool:  # noqa: ANN401
    import sympy

    gold, given = gold.doit(), given.doit()
    if gold.has(sympy.nan, sympy.zoo) or given.has(sympy.nan, sympy.zoo):
        return False
    if gold == given or (gold.is_Rational and given.is_Rational) or gold.is_infinite or given.is_infinite:
        return bool(gold == given)
    # Two values such as 10^20 and the root of 10^40 + 1 agree in about as many digits as they contain.
    sizes = [abs(part.p).bit_length() + part.q.bit_length() for part in (gold + given).atoms(sympy.Rational)]
    digits = MIN_DIGITS + max(sizes, default=0)
    if digits > MAX_DIGITS:
        return False
    left, right = _parts(gold, digits), _parts(given, digits)
    if left is None or right is None:
        return False
    size = max(map(abs, (*left, *right)))
    return all(
        abs(a - b) <= size * sympy.Float(10, 5) ** (GUARD_DIGITS - digits)
        for a, b in zip(left, right, strict=True)
    )


def _parts(value: Any, digits: int) -> tuple[Any, Any] | None:  # noqa: ANN401
    """Return the real and the imaginary part with that many digits, or None if the value has no number."""
    import sympy

    parts = value.evalf(digits, maxn=4 * digits).as_real_imag()
    if not all(part.is_Rational or part.is_Float for part in parts):
        return None
    # Sympy marks a sum that cancels completely by a precision of one bit.
    real, imaginary = (sympy.Integer(0) if part.is_Float and part._prec == 1 else part for part in parts)
    return real, imaginary


def _identical(gold: Any, given: Any) -> bool:  # noqa: ANN401
    """Return True if both expressions agree wherever the ground truth is defined, as tested at several points."""
    given = _with_constant_of(gold, given)
    symbols = sorted(gold.free_symbols | given.free_symbols, key=str)
    num_defined = 0
    for point in _points(gold, given, symbols):
        value = _at(gold, point).doit()
        if not _is_defined(value):
            continue
        num_defined += 1
        if not _numbers_equal(value, _at(given, point)):
            return False
    return num_defined >= MIN_POINTS


def _at(form: Any, point: dict[Any, Any]) -> Any:  # noqa: ANN401
    import sympy

    if form.has(sympy.Derivative, sympy.Integral, sympy.Limit):
        form = form.doit()  # these bind a variable, which may also be free elsewhere
    return (
        form.subs(point)
        if form.has(sympy.Sum, sympy.Product, sympy.Integral, sympy.Limit)
        else form.xreplace(point)
    )


def evaluation_errors() -> tuple[type[Exception], ...]:
    """Return the errors that sympy raises while it evaluates an expression without meaning."""
    from sympy.core.function import ArgumentIndexError, PoleError
    from sympy.polys.polyerrors import BasePolynomialError

    return (
        *(
            ArithmeticError,
            AttributeError,
            LookupError,
            NotImplementedError,
            RecursionError,
            TypeError,
            ValueError,
        ),
        *(ArgumentIndexError, BasePolynomialError, PoleError),
    )


def _points(gold: Any, given: Any, symbols: Sequence[Any]) -> list[dict[Any, Any]]:  # noqa: ANN401
    import sympy

    rational = [sympy.Rational(*terms) for terms in _FRACTIONS]
    if _is_discrete(gold) or _is_discrete(given):
        rational = [sympy.Integer(term) for term in _WHOLE]
    elif _has_positive_domain(gold):
        rational = [abs(term) for term in rational]
    # Every symbol has its own order of the same values, so that no two of them are equal at any point.
    return [
        {symbol: rational[(first + 3 * index) % len(rational)] for index, symbol in enumerate(symbols)}
        for first in range(6)
    ]


def _is_discrete(form: Any) -> bool:  # noqa: ANN401
    """Return True for expressions in a whole number, such as (-1)^n and sums up to n."""
    import sympy

    return any(power.base.is_negative and power.exp.free_symbols for power in form.atoms(sympy.Pow)) or any(
        limit.free_symbols for total in form.atoms(sympy.Sum, sympy.Product) for limit in total.limits[0][1:]
    )


def _has_positive_domain(form: Any) -> bool:  # noqa: ANN401
    """Return True if variables stand under roots or logarithms, where authors mean positive ones."""
    import sympy

    if form.has(sympy.Abs):
        return False
    roots = (power.base for power in form.atoms(sympy.Pow) if not power.exp.is_integer)
    return any(part.free_symbols for part in (*roots, *form.atoms(sympy.log)))


def _is_defined(value: Any) -> bool:  # noqa: ANN401
    import sympy

    return not value.free_symbols and not value.has(sympy.nan, sympy.zoo, sympy.oo)


def _with_constant_of(gold: Any, given: Any) -> Any:  # noqa: ANN401
    """Name the constant of integration as the ground truth does: `x + c` is `x + C`."""
    ours, theirs = _constant(gold), _constant(given)
    return given if ours is None or theirs is None else given.xreplace({theirs: ours})


def _constant(form: Any) -> Any | None:  # noqa: ANN401
    names = {"C", "c", "K", "k", "C_1", "c_1"}
    terms = form.args if form.is_Add else ()
    constants = [term for term in terms if term.is_Symbol and term.name in names]
    if len(constants) != 1 or sum(constants[0] in term.free_symbols for term in terms) != 1:
        return None
    return constants[0]


def _powers_equal(gold: Any, given: Any) -> bool:  # noqa: ANN401
    """Compare sums of powers that are too large to evaluate, such as 3^(10^9) + 1, by the prime factors of terms."""
    sides = [
        [_prime_powers(term) for term in (form.args if form.is_Add else (form,))] for form in (gold, given)
    ]
    if any(factors is None for terms in sides for factors in terms):
        return False
    left, right = (
        sorted(sorted(factors.items()) for factors in terms if factors is not None) for terms in sides
    )
    return left == right


def _prime_powers(form: Any) -> dict[int, int] | None:  # noqa: ANN401
    import sympy

    if form.is_Integer and 0 < form < 10**12:
        return dict(sympy.factorint(int(form)))
    factors: dict[int, int] = {}
    if form.is_Mul:
        for part in map(_prime_powers, form.args):
            if part is None:
                return None
            for prime, power in part.items():
                factors[prime] = factors.get(prime, 0) + power
        return factors
    if form.is_Pow and num_bits(form.exp) <= MAX_BITS:
        base, power = _prime_powers(form.base), form.exp.doit()
        return (
            {prime: own * int(power) for prime, own in base.items()}
            if base is not None and power.is_Integer
            else None
        )
    return None
