r"""The ground truth of a problem of code: its tests, as Eurus-2-RL-Data and the released grader have them.

{"inputs": ["1 2\n", ...], "outputs": ["3\n", ...]}                       standard input and output
{"inputs": [["1 2", "3"], ...], "outputs": [["4"], ...]}                  the same, as lists of lines
{"fn_name": "add", "inputs": [[1, 2], ...], "outputs": [[3], ...]}        calls of a function or of Solution().add
{"fn_name": "add", "inputs": ["1\n2", ...], "outputs": ["3", ...]}        the same, as JSON: one argument per line
"""

import contextlib
import json
import keyword
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from megatron_prime.rewards.code.comparison import unified_line_ends

SHAPE = (
    'it must be JSON like {"inputs": ["1 2\\n"], "outputs": ["3\\n"]}, with "fn_name" for calls of a function'
)


@dataclass(frozen=True, slots=True)
class CodeTest:
    """One test of a problem."""

    stdin: str
    """Standard input, or one line with the JSON list of the function's arguments."""
    expected: Any
    """Expected standard output as text, or the expected result as a JSON value."""
    is_blank: bool = False
    """Whether a program that does nothing passes the test."""


def read_tests(answer: str) -> tuple[str | None, list[CodeTest]]:
    """Return the function name (None for standard input and output) and the tests of a ground truth.

    Raises:
        ValueError: If the text is not JSON or not in the module's format, or if a program that does nothing would pass
            all tests.
    """
    with _long_integers():
        truth = _parsed(answer, "the ground truth of code")
        inputs, outputs = _lists(truth)
        fn_name = truth.get("fn_name")
        if fn_name is None:
            tests = [
                _printed(number, given, out)
                for number, (given, out) in enumerate(zip(inputs, outputs, strict=True))
            ]
            if all(test.is_blank for test in tests):
                raise ValueError(
                    "every one of `outputs` is blank: a program that prints nothing would be right"
                )
            return None, tests
        if not isinstance(fn_name, str) or not fn_name.isidentifier() or keyword.iskeyword(fn_name):
            raise ValueError(f"fn_name = {fn_name!r} is not a valid function name")
        tests = [
            _call(number, given, out) for number, (given, out) in enumerate(zip(inputs, outputs, strict=True))
        ]
    if all(test.is_blank for test in tests):
        raise ValueError("every one of `outputs` is null: a function that does nothing would be right")
    return fn_name, tests


def evenly_spaced(tests: list[CodeTest], max_tests: int) -> list[CodeTest]:
    """Return at most `max_tests` tests, evenly spaced and including the first and the last."""
    if len(tests) <= max_tests:
        return tests
    if max_tests == 1:
        return tests[:1]
    return [tests[round(index * (len(tests) - 1) / (max_tests - 1))] for index in range(max_tests)]


@contextlib.contextmanager
def _long_integers() -> Iterator[None]:
    """Convert integers of any length inside of the block; the data of a run are trusted to be of a sensible size."""
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        yield
    finally:
        sys.set_int_max_str_digits(limit)


def _parsed(text: str, name: str) -> Any:  # noqa: ANN401 - JSON values
    try:
        return json.loads(text, parse_constant=_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} must be JSON with inputs and outputs: {error}; {SHAPE}") from error


def _constant(name: str) -> float:
    if name == "NaN":
        raise ValueError("NaN is equal to no result")
    return float(name)


def _lists(truth: object) -> tuple[list[Any], list[Any]]:
    if not isinstance(truth, dict):
        raise ValueError(
            f"the ground truth of code is a {type(truth).__name__} without lists of inputs and outputs: {SHAPE}"
        )
    inputs, outputs = truth.get("inputs"), truth.get("outputs")
    if not isinstance(inputs, list) or not isinstance(outputs, list) or not inputs:
        raise ValueError(
            "the ground truth of code needs non-empty lists `inputs` and `outputs` of equal length; its keys are "
            f"{sorted(truth)}: {SHAPE}"
        )
    if len(inputs) != len(outputs):
        raise ValueError(
            f"the ground truth of code has {len(inputs)} `inputs` and {len(outputs)} `outputs`: they must be of equal "
            "length"
        )
    return inputs, outputs


def _printed(number: int, given: object, out: object) -> CodeTest:
    expected = _text("outputs", number, out)
    return CodeTest(_text("inputs", number, given), expected, not expected.strip())


def _call(number: int, given: object, out: object) -> CodeTest:
    if isinstance(given, str):
        arguments = [
            _parsed(line, f"inputs[{number}]")
            for line in unified_line_ends(given).split("\n")
            if line.strip()
        ]
        if not isinstance(out, str):
            raise ValueError(
                f"inputs[{number}] is text of JSON, but outputs[{number}] is a {type(out).__name__}"
            )
        out = _parsed(out, f"outputs[{number}]")
    elif isinstance(given, list):
        arguments = given
    else:
        raise ValueError(
            f"inputs[{number}] must be the list of arguments of one call, not a {type(given).__name__}"
        )
    # JSON escapes line breaks within text, so the arguments of a call are one line, as the launcher expects.
    return CodeTest(json.dumps(arguments) + "\n", out, out in (None, [None]))


def _text(name: str, number: int, value: object) -> str:
    """Return text as it is, and a list of lines, as some data sources have it, joined."""
    lines = value if isinstance(value, list) else [value]
    for line in lines:
        # str() would show any value as Python writes it, which is not what a program reads or prints.
        if isinstance(line, bool) or not isinstance(line, str | int | float):
            raise ValueError(
                f"{name}[{number}] must be text or a list of lines, not a {type(line).__name__}; with fn_name it "
                "would be arguments and results"
            )
    text = unified_line_ends("\n".join(map(str, lines)))
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{name}[{number}] has half of a character (a lone surrogate)") from error
    return text
