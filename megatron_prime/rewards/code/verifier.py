r"""The `code` verifier: the fraction of a problem's tests that the program in a response passes.

The program is the last closed ```python block of the response; without one the reward is 0. The ground truth is JSON,
see `ground_truth`.

Each test is a separate run in a `Sandbox`. Expected outputs never enter the sandbox: outputs are compared outside, so
that a program can only pass a test by computing its output. It must also exit with code 0. Tests that expect nothing
count only for a program that passes another test too, since a program that does nothing passes them.
"""

import re
from typing import Any

from megatron_prime.config.tables.reward import CodeConfig
from megatron_prime.rewards.code.comparison import outputs_equal, results_equal
from megatron_prime.rewards.code.ground_truth import CodeTest, evenly_spaced, read_tests
from megatron_prime.rewards.code.sandbox import Completed, Sandbox

_OPENING = re.compile(r"[ \t]*```(?:python3?|py)[ \t]*", re.IGNORECASE)


WARM_UP = "import collections, decimal, heapq, json, math, random, re, statistics, string\nprint(6 * 7)"
"""Program that tests the sandbox. It imports modules because an interpreter starts even if the sandbox's uid may not
read the standard library."""


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
            ValueError: If the ground truth is not in the format of `ground_truth`.
            SandboxError: If the sandbox itself failed.
        """
        return self.explain(response_text, answer)[0]

    def explain(self, response_text: str, answer: str) -> tuple[float, str]:
        """Return the reward as `verify` does, and the number of tests passed with the first failure."""
        fn_name, tests = read_tests(answer)
        code = last_program(response_text)
        if code is None:
            return 0.0, "the response has no closed ```python block"
        if len(tests) > self._config.max_tests:
            # The first is always taken, and must not be one that a program without output passes.
            tests = evenly_spaced(sorted(tests, key=lambda test: test.is_blank), self._config.max_tests)
        rest = self._config.total_timeout_s
        num_passed, has_done_something, first = 0, False, ""
        for number, test in enumerate(tests, start=1):
            if rest <= 0:
                # The remaining tests count as failed.
                first = first or f"; test {number} did not begin within {self._config.total_timeout_s:g} s"
                break
            # Every test has a new sandbox, so that nothing that one test leaves behind can help another (ADR 0014).
            completed = self._sandbox.run(
                code, test.stdin.encode(), min(self._config.test_timeout_s, rest), call=fn_name
            )
            # The time to start a sandbox is left out: a reward must not depend on the load of the machine.
            rest -= completed.seconds
            failure = _failure(completed, test, fn_name)
            num_passed += not failure
            has_done_something |= not failure and not test.is_blank
            if failure:
                first = first or f"; test {number} {failure}"
                if not self._config.partial_credit:
                    break
        reason = f"{num_passed} of {len(tests)} tests passed{first}"
        if not has_done_something:
            return 0.0, f"{reason}; they expect nothing" if num_passed else reason
        if not self._config.partial_credit:
            return float(num_passed == len(tests)), reason
        return num_passed / len(tests), reason


def _failure(completed: Completed, test: CodeTest, fn_name: str | None) -> str:
    """Return how a program failed a test, or "" if it passed."""
    if completed.exit_code is None:
        return f"was ended: {completed.detail}"
    if completed.exit_code != 0:
        last_line = completed.detail.splitlines()[-1] if completed.detail else "it printed no error"
        return f"ended with exit code {completed.exit_code}: {last_line}"
    printed = completed.stdout.decode(errors="replace")
    equal = outputs_equal if fn_name is None else results_equal
    if equal(test.expected, printed):
        return ""
    verb = "printed" if fn_name is None else "returned"
    return f"{verb} {printed[:60]!r} instead of {_shown(test.expected)!r}"


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


def _shown(expected: object) -> str:
    try:
        return str(expected)[:60]
    except ValueError:
        return "an integer of thousands of digits"
