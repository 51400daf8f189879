r"""The `code` verifier: the fraction of a problem's tests that the program in a response passes.

The program is the last closed ```python block of the response; without one the reward is 0. The ground truth is JSON in
the format of Eurus-2-RL-Data:

    {"inputs": ["1 2\n", ...], "outputs": ["3\n", ...]}                       standard input and output
    {"fn_name": "add", "inputs": [[1, 2], ...], "outputs": [[3], ...]}        calls of a function or of Solution().add

Each test is a separate run in a `Sandbox`. Expected outputs never enter the sandbox: outputs are compared outside, so
that a program can only pass a test by computing its output. It must also exit with code 0.
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
"""Program that tests the sandbox. It imports modules because an interpreter starts even if the sandbox's uid may not
read the standard library."""


@dataclass(frozen=True, slots=True)
class CodeTest:
    """One test of a problem."""

    stdin: str
    """Standard input, or one line with the JSON list of the function's arguments."""
    expected: Any
    """Expected standard output as text, or the expected result as a JSON value."""


class CodeVerifier:
    """Verifier of programs; see the module's docstring. It runs one program at a time."""

    in_process = False

    def __init__(self, **settings: Any) -> None:  # noqa: ANN401 - fields of CodeConfig
        """Create the sandbox; `settings` are the fields of reward.code.

        Raises:
            ValueError: If reward.code.sandbox is "bubblewrap" and bwrap is not installed.
        """
        self._config = CodeConfig(**settings)
        self._sandbox = Sandbox(self._config)

    def warm_up(self) -> None:
        """Test the sandbox: a machine where it does not work must not give rewards.

        Raises:
            SandboxError: If it does not start.
            RuntimeError: If a correct program fails in it.
        """
        completed = self._sandbox.run(WARM_UP, b"", timeout_s=30.0)
        if completed.stdout != b"42\n":
            raise RuntimeError(f"a program that prints 42 fails in the sandbox: {completed}")

    def verify(self, response_text: str, answer: str) -> float:
        """Return the fraction of tests passed; with reward.code.partial_credit = false, 1.0 for all tests or else 0.0.

        Raises:
            ValueError: If the ground truth is not in the module's format.
            SandboxError: If the sandbox itself failed.
        """
        fn_name, tests = read_tests(answer)
        code = last_program(response_text)
        if code is None:
            return 0.0
        tests = evenly_spaced(tests, self._config.max_tests)
        deadline = time.monotonic() + self._config.total_timeout_s
        num_passed = 0
        for test in tests:
            seconds = min(self._config.test_timeout_s, deadline - time.monotonic())
            if seconds <= 0:
                break  # the remaining tests count as failed
            is_passed = self._passes(code, test, fn_name, seconds)
            num_passed += is_passed
            if not is_passed and not self._config.partial_credit:
                break
        if not self._config.partial_credit:
            return float(num_passed == len(tests))
        return num_passed / len(tests)

    def _passes(self, code: str, test: CodeTest, fn_name: str | None, timeout_s: float) -> bool:
        # Every test has a new sandbox, so that nothing that one test leaves behind can help another (ADR 0014).
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
    """Return the contents of the last closed ```python block, or None if there is none."""
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
    """Return the function name (None for standard input and output) and the tests of a ground truth.

    Raises:
        ValueError: If the text is not JSON or not in the module's format.
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
            "the ground truth of code needs non-empty lists `inputs` and `outputs` of equal length"
        )
    fn_name = truth.get("fn_name")
    if fn_name is None:
        return None, [CodeTest(_text(given), _text(out)) for given, out in zip(inputs, outputs, strict=True)]
    if not isinstance(fn_name, str) or not fn_name.isidentifier():
        raise ValueError(f"fn_name = {fn_name!r} is not a valid function name")
    if not all(isinstance(arguments, list) for arguments in inputs):
        raise ValueError("with fn_name, each of `inputs` must be the list of arguments of one call")
    # JSON escapes line breaks within text, so the arguments of a call are one line, as the launcher expects.
    return fn_name, [CodeTest(json.dumps(a) + "\n", out) for a, out in zip(inputs, outputs, strict=True)]


def evenly_spaced(tests: list[CodeTest], max_tests: int) -> list[CodeTest]:
    """Return at most `max_tests` tests, evenly spaced and including the first and the last."""
    if len(tests) <= max_tests:
        return tests
    if max_tests == 1:
        return tests[:1]
    return [tests[round(index * (len(tests) - 1) / (max_tests - 1))] for index in range(max_tests)]


def _text(value: object) -> str:
    """Return text as it is, and a list of lines, as some data sources have it, joined."""
    if isinstance(value, list):
        return "\n".join(map(str, value))
    return str(value)
