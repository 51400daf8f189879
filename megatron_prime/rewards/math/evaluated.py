"""Recognizes answers that restate a computation instead of giving its result."""

import re

_KINDS = {
    "integral": r"\\i{1,3}nt(?![A-Za-z])|\\oint",
    "sum": r"\\sum(?![A-Za-z])",
    "product": r"\\prod(?![A-Za-z])",
    "limit": r"\\lim(?![A-Za-z])|\\lim(?:sup|inf)",
    "derivative": r"\\frac\s*\{\s*(?:d|\\text\{d\}|\\partial)(?:\^\{?\d+\}?)?\s*[A-Za-z()]{0,4}\s*\}"
    r"\{\s*(?:d|\\text\{d\}|\\partial)\s*[a-z]\s*(?:\^\{?\d+\}?)?\s*\}|(?<![A-Za-z\\])d\s*/\s*d[a-z]",
    "divisor": r"(?<![A-Za-z])(?:gcd|lcm|hcf)(?![A-Za-z])",
    "matrix": r"(?<![A-Za-z])(?:det|tr|trace|rank|dim)(?![A-Za-z])|\\begin\{vmatrix\}",
    "extremum": r"\\(?:max|min|sup|inf)(?![A-Za-z])|(?<![A-Za-z])(?:max|min)\s*\}?\s*\\?[({]",
    "count": r"\\binom|\\choose(?![A-Za-z])|!|\{\}_|\^\{?\d+\}?[CP]_",
    "rounding": r"\\l?(?:floor|ceil)|(?<![A-Za-z])(?:floor|ceil)(?![A-Za-z])",
    "absolute": r"\||\\lvert|\\vert|\\mid|\\lVert|\\Vert",
    "logarithm": r"\\(?:ln|log|lg)(?![A-Za-z])|(?<![A-Za-z\\])(?:ln|log)(?![A-Za-z])",
    "trigonometry": r"(?<![A-Za-z])\\?(?:arc)?(?:sin|cos|tan|cot|sec|csc)h?(?![A-Za-z])",
}
_ALWAYS = ("integral", "sum", "product", "limit", "derivative", "divisor", "matrix", "extremum")
"""Kinds that no final answer has unless the ground truth has it too; the others are refused of numbers alone."""
_PATTERNS = {kind: re.compile(pattern) for kind, pattern in _KINDS.items()}
_VARIABLE = re.compile(r"(?<![A-Za-z\\])[A-Za-z](?![A-Za-z])")
_COMMAND = re.compile(r"\\[A-Za-z]+|\\text\{[^{}]*\}")


def is_unevaluated(gold: str, given: str) -> bool:
    r"""Return True if `given` leaves an operation to be done that the ground truth does not have.

    Such are integrals, sums, limits, derivatives, common divisors and determinants, and of numbers alone also binomials
    and factorials, logarithms, trigonometric functions, absolute values and rounding: `\log_2 8` is not worked out,
    `\log_2 x` is. Arithmetic, powers and roots are no operations in this sense. Both texts are normalized.
    """
    # An index, a unit and Euler's number are no variables; the imaginary unit is one, since polar forms need angles.
    has_variables = any(letter[0] not in "eCP" for letter in _VARIABLE.finditer(_COMMAND.sub(" ", given)))
    kinds = _ALWAYS if has_variables else tuple(_PATTERNS)
    return any(_PATTERNS[kind].search(given) and not _PATTERNS[kind].search(gold) for kind in kinds)
