"""A calculator: arithmetic on exact integers and floating-point numbers, bounded in time and size.

The expression is parsed and walked, and never executed. Every operation on integers is refused before it makes one of
more than MAX_BITS bits, so that towers of powers and huge factorials cost nothing.
"""

import ast
import math
import operator
import warnings
from collections.abc import Callable, Mapping
from typing import Any

MAX_CHARACTERS = 1000
MAX_BITS = 4096
"""Bits of the largest integer: over a thousand decimal digits."""
MAX_DEPTH = 200
Number = int | float

_SYMBOLS = str.maketrans({"\N{MULTIPLICATION SIGN}": "*", "\N{DIVISION SIGN}": "/", "\N{MINUS SIGN}": "-"})
_CONSTANTS = {"pi": math.pi, "e": math.e, "tau": math.tau}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "abs": abs, "min": min, "max": max, "floor": math.floor, "ceil": math.ceil, "sqrt": math.sqrt, "exp": math.exp,
    "log": math.log, "log2": math.log2, "log10": math.log10, "sin": math.sin, "cos": math.cos, "tan": math.tan,
    "asin": math.asin, "acos": math.acos, "atan": math.atan, "gcd": math.gcd,
}  # fmt: skip
_OPERATORS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.Pow: operator.pow,
}  # fmt: skip


class Tool:
    """The tool `calculator`."""

    schema: Mapping[str, Any] = {
        "type": "function",
        "function": {
            "name": "calculator",
            "description": "Evaluate an arithmetic expression, such as (2 + 3) * 4 ** 2 or sqrt(2).",
            "parameters": {
                "type": "object",
                "properties": {
                    "expression": {
                        "type": "string",
                        "description": "The expression, with + - * / // % ** and functions such as sqrt, log, "
                        "factorial, gcd and round.",
                    }
                },
                "required": ["expression"],
            },
        },
    }

    def __init__(self, _: Mapping[str, Any]) -> None:
        pass

    async def call(self, arguments: Mapping[str, Any], seconds: float) -> str:
        """Return the value of the expression."""
        return evaluate(arguments["expression"])


def evaluate(expression: str) -> str:
    """Return the value of an expression as text.

    Raises:
        ValueError: it is no arithmetic, or its value is too large or no real number.
        ZeroDivisionError: it divides by zero.
    """
    text = expression.strip().translate(_SYMBOLS)
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"the expression has {len(text):,} characters, more than {MAX_CHARACTERS:,}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise ValueError(f"it is no arithmetic expression: {getattr(error, 'msg', error)}") from error
    try:
        value = _value(tree.body, 0)
    except OverflowError as error:
        raise ValueError("a number is too large") from error
    # What is exact to the last digit that is shown: 0.1 + 0.2 is 0.3.
    return str(value) if isinstance(value, int) else f"{value:.12g}"


def _value(node: ast.expr, depth: int) -> Number:
    if depth > MAX_DEPTH:
        raise ValueError("it is nested too deeply")
    result: Any
    match node:
        case ast.Constant(value=int() | float() as result) if not isinstance(result, bool):
            pass
        case ast.Name(id=name) if name in _CONSTANTS:
            result = _CONSTANTS[name]
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=operand):
            value = _value(operand, depth + 1)
            result = -value if isinstance(sign, ast.USub) else value
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            result = _operation(op, _value(left, depth + 1), _value(right, depth + 1))
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]):
            result = _function(name, [_value(argument, depth + 1) for argument in arguments])
        case _:
            raise ValueError(_advice(node))
    return _checked(result)


def _checked(value: object) -> Number:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError("the value is no real number")
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        raise ValueError("a number is too large")
    return value


def _operation(op: ast.operator, left: Number, right: Number) -> object:
    if isinstance(op, ast.Pow):
        return _power(left, right)
    return _OPERATORS[type(op)](left, right)


def _power(base: Number, exponent: Number) -> object:
    if isinstance(base, int) and isinstance(exponent, int) and abs(base) > 1:
        if exponent > MAX_BITS or base.bit_length() * exponent > 2 * MAX_BITS:
            raise ValueError("a number is too large")
        if exponent < 0:
            return float(base) ** exponent
    return base**exponent


def _function(name: str, values: list[Number]) -> object:
    if name == "factorial":
        name, values = "perm", [*values, *values]
    if name in ("factorial", "comb", "perm"):
        if len(values) != 2 or not all(isinstance(value, int) and value >= 0 for value in values):
            raise ValueError("factorial, comb and perm take whole numbers that are not negative")
        total, chosen = (int(value) for value in values)
        # Both are products of at most `factors` numbers up to `total`.
        factors = min(chosen, total - chosen) if name == "comb" else chosen
        if factors > 0 and factors * total.bit_length() > 2 * MAX_BITS and chosen <= total:
            raise ValueError("a number is too large")
        return math.comb(total, chosen) if name == "comb" else math.perm(total, chosen)
    if name == "round":
        digits = values[1] if len(values) == 2 else 0
        if not 1 <= len(values) <= 2 or not isinstance(digits, int) or abs(digits) > 15:
            raise ValueError("round takes a number and a number of digits from -15 to 15")
        rounded = round(values[0], digits)
        return int(rounded) if digits <= 0 else rounded
    if name not in _FUNCTIONS:
        known = ", ".join(sorted([*_FUNCTIONS, "comb", "factorial", "perm", "round"]))
        raise ValueError(f"there is no function {name[:40]!r}; there are {known}")
    try:
        return _FUNCTIONS[name](*values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: {error}") from error


def _advice(node: ast.expr) -> str:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitXor):
        return "^ is no operator here: powers are written with **"
    if isinstance(node, ast.Tuple):
        return "a comma separates arguments of functions only: write 1000 for 1,000 and 0.5 for 0,5"
    if isinstance(node, ast.Name):
        return f"{node.id[:40]!r} has no value: only numbers can be computed with"
    return "only numbers, + - * / // % **, parentheses and functions such as sqrt are known"
