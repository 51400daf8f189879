r"""The `code` verifier: which share of a problem's tests does the response's program pass?

Contract. The program is the last closed ```python block of the response; without one the reward is 0. The ground truth
is Eurus-2-RL-Data's JSON:

    {"inputs": ["1 2\n", ...], "outputs": ["3\n", ...]}                       standard input and output
    {"fn_name": "add", "inputs": [[1, 2], ...], "outputs": [[3], ...]}        calls of a function or of Solution().add

Each test is a run of its own in a `Sandbox`. Expected outputs never go in there: what comes out is compared here, so a
program earns a test by computing its output and in no other way. A clean exit proves nothing, and is asked for besides.
"""

import json
import re
import time
from dataclasses import dataclass
from typing import Any

from megatron_prime.config.tables.reward import CodeConfig
from megatron_prime.rewards.code.comparison import outputs_equal, results_equal
from megatron_prime.rewards.code.sandbox import Sandbox

_OPENING = re.compile(r"[ \t]*```(?:python3?|py)[ \t]*", re.IGNORECASE)


WARM_UP = "import collections, decimal, heapq, json, math, random, re, statistics, string\nprint(6 * 7)"
"""Imports, because an interpreter whose library the box's uid may not read starts all the same."""


@dataclass(frozen=True, slots=True)
class CodeTest:
    """One test of a problem."""

    stdin: str
    """Standard input, or one line of JSON: the arguments of the function."""
    expected: Any
    """Standard output as text, or the result as a JSON value."""


class CodeVerifier:
    """See the module's contract. One program at a time."""

    in_process = False

    def __init__(self, **settings: Any) -> None:  # noqa: ANN401 - fields of CodeConfig
        """`settings` are the fields of reward.code.

        Raises:
            ValueError: bubblewrap is asked for and not there.
        """
        self._config = CodeConfig(**settings)
        self._sandbox = Sandbox(self._config)

    def warm_up(self) -> None:
        """Try the sandbox: a machine where it does not work must not give rewards.

        Raises:
            SandboxError: it does not come up.
        """
        completed = self._sandbox.run(WARM_UP, b"", timeout_s=30.0)
        if completed.stdout != b"42\n":
            raise RuntimeError(f"a program that prints 42 does not in the sandbox: {completed}")

    def verify(self, response_text: str, answer: str) -> float:
        """Fraction of tests passed, or with reward.code.partial_credit = false 1.0 for all of them and else 0.0.

        Raises:
            ValueError: the ground truth is not of the form above.
            SandboxError: the sandbox itself failed.
        """
        fn_name, tests = read_tests(answer)
        code = last_program(response_text)
        if code is None:
            return 0.0
        tests = spread(tests, self._config.max_tests)
        deadline = time.monotonic() + self._config.total_timeout_s
        num_passed = 0
        for test in tests:
            seconds = min(self._config.test_timeout_s, deadline - time.monotonic())
            if seconds <= 0:
                break
            is_passed = self._passes(code, test, fn_name, seconds)
            num_passed += is_passed
            if not is_passed and not self._config.partial_credit:
                break
        if not self._config.partial_credit:
            return float(num_passed == len(tests))
        return num_passed / len(tests)

    def _passes(self, code: str, test: CodeTest, fn_name: str | None, timeout_s: float) -> bool:
        completed = self._sandbox.run(code, test.stdin.encode(), timeout_s, call=fn_name)
        if completed.exit_code != 0:
            return False
        printed = completed.stdout.decode(errors="replace")
        return (
            outputs_equal(test.expected, printed)
            if fn_name is None
            else results_equal(test.expected, printed)
        )


def last_program(response_text: str) -> str | None:
    """Contents of the last closed ```python block, or None."""
    program: list[str] | None = None
    last: list[str] | None = None
    for line in response_text.replace("\r\n", "\n").split("\n"):
        if program is None:
            program = [] if _OPENING.fullmatch(line) else None
        elif line.strip() == "```":
            program, last = None, program
        else:
            program.append(line)
    return None if last is None else "".join(f"{line}\n" for line in last)


def read_tests(answer: str) -> tuple[str | None, list[CodeTest]]:
    """Function name (None for standard input and output) and tests of a ground truth.

    Raises:
        ValueError: no JSON, or not of the module's form; says what is wrong.
    """
    try:
        truth = json.loads(answer)
    except ValueError as error:
        raise ValueError(f"the ground truth of code must be JSON with inputs and outputs: {error}") from error
    inputs, outputs = (truth.get("inputs"), truth.get("outputs")) if isinstance(truth, dict) else (None, None)
    if (
        not isinstance(inputs, list)
        or not isinstance(outputs, list)
        or len(inputs) != len(outputs)
        or not inputs
    ):
        raise ValueError(
            "the ground truth of code needs lists `inputs` and `outputs` of one length, not empty"
        )
    fn_name = truth.get("fn_name")
    if fn_name is None:
        return None, [CodeTest(_text(given), _text(out)) for given, out in zip(inputs, outputs, strict=True)]
    if not isinstance(fn_name, str) or not fn_name.isidentifier():
        raise ValueError(f"fn_name = {fn_name!r} is no name of a function")
    if not all(isinstance(arguments, list) for arguments in inputs):
        raise ValueError("with fn_name, each of `inputs` must be the list of arguments of one call")
    return fn_name, [CodeTest(json.dumps(a) + "\n", out) for a, out in zip(inputs, outputs, strict=True)]


def spread(tests: list[CodeTest], max_tests: int) -> list[CodeTest]:
    """At most `max_tests` of them, evenly spread, the first and the last included."""
    if len(tests) <= max_tests:
        return tests
    if max_tests == 1:
        return tests[:1]
    return [tests[round(place * (len(tests) - 1) / (max_tests - 1))] for place in range(max_tests)]


def _text(value: object) -> str:
    """Text, or lines as some sources give them."""
    if isinstance(value, list):
        return "\n".join(map(str, value))
    return str(value)
