r"""Converts the unit tests of code benchmarks to ground truths in the format of Eurus-2-RL-Data.

Tests by standard input and output are {"inputs": ["1 2\n", ...], "outputs": ["3\n", ...]}. Tests by function call are
{"fn_name": "add", "inputs": [[1, 2], ...], "outputs": [[3], ...]}: per test the list of arguments, and a list that
holds the one result.
"""

import ast
import base64
import binascii
import io
import json
import pickle
import zlib
from typing import Any

MAX_TESTS_BYTES = 1 << 28
"""Limit on the unpacked tests of one problem; larger data is rejected as corrupt."""


def livecodebench_tests(public: object, private: object, metadata: object) -> str:
    """Build a ground truth from LiveCodeBench's columns public_test_cases, private_test_cases and metadata.

    Raises:
        ValueError: If a column is not in the benchmark's format, or there are no tests or tests of both kinds.
    """
    tests = [*_cases(public, "public_test_cases"), *_cases(private, "private_test_cases")]
    kinds = {str(test.get("testtype", "stdin")) for test in tests}
    if not tests or len(kinds) > 1:
        raise ValueError(f"{len(tests)} tests of kinds {sorted(kinds)}; a problem needs tests of one kind")
    try:
        if kinds == {"functional"}:
            fn_name = _object(metadata, "metadata").get("func_name")
            if not fn_name or not isinstance(fn_name, str):
                raise ValueError("the tests call a function, but metadata has no func_name")
            # A functional test has one JSON value per line: the arguments in order.
            # Not splitlines(), which splits at characters that JSON allows within a text.
            inputs = [
                [json.loads(line) for line in test["input"].split("\n") if line.strip()] for test in tests
            ]
            outputs = [[json.loads(test["output"])] for test in tests]
            return json.dumps({"fn_name": fn_name, "inputs": inputs, "outputs": outputs})
        return json.dumps(
            {"inputs": [test["input"] for test in tests], "outputs": [test["output"] for test in tests]}
        )
    except (KeyError, AttributeError, TypeError, RecursionError, json.JSONDecodeError) as error:
        raise ValueError(f"a test is not in LiveCodeBench's format: {error!r}") from error


def leetcode_tests(source: str, entry_point: str | None = None) -> str:
    """Build a ground truth from Python code with asserts that compare a call with a literal, as in LeetCode data sets.

    The code is parsed, never run. Keyword arguments are converted to positional ones in the order in which they are
    written; `**name` stands for the dictionary last assigned to that name.

    Args:
        source: Python code of the tests.
        entry_point: Function, or `Solution().method`; by default the function that the asserts call.

    Raises:
        ValueError: If the text is not Python, has no such asserts, or its asserts call several functions.
    """
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"the tests are not Python: {error}") from error
    calls: list[tuple[str, list[Any], Any]] = []
    assigned: dict[str, ast.expr] = {}
    for node in _assignments_and_asserts(tree):
        # The nodes come in the order of the text, so a name stands for its last assignment before the assert.
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            assigned[node.targets[0].id] = node.value
        elif isinstance(node, ast.Assert):
            calls.append(_call_of(node, assigned))
    wanted = entry_point.rpartition(".")[2] if entry_point else None
    names = {wanted or name for name, _, _ in calls}
    if len(names) != 1:
        raise ValueError(f"the asserts call {sorted(names)}; the tests of a problem must call one function")
    inputs = [arguments for _, arguments, _ in calls]
    outputs = [[result] for _, _, result in calls]
    try:
        return json.dumps({"fn_name": names.pop(), "inputs": inputs, "outputs": outputs})
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"an argument or result cannot be written as JSON: {error}") from error


def _assignments_and_asserts(tree: ast.Module) -> list[ast.Assign | ast.Assert]:
    """Return all assignments and asserts, including those inside functions, in the order of the text."""
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Assign | ast.Assert)]
    return sorted(nodes, key=lambda node: (node.lineno, node.col_offset))


def _call_of(node: ast.Assert, assigned: dict[str, ast.expr]) -> tuple[str, list[Any], Any]:
    """Return function name, arguments and expected result of `assert f(...) == literal`."""
    test = node.test
    is_equality = isinstance(test, ast.Compare) and [type(op) for op in test.ops] == [ast.Eq]
    if not (is_equality and isinstance(test, ast.Compare) and isinstance(test.left, ast.Call)):
        raise ValueError(f"line {node.lineno} does not compare a call with a value: {ast.unparse(node)[:80]}")
    call = test.left
    name = call.func.attr if isinstance(call.func, ast.Attribute) else ast.unparse(call.func)
    try:
        arguments = [ast.literal_eval(argument) for argument in call.args]
        for keyword in call.keywords:
            if keyword.arg is not None:
                arguments.append(ast.literal_eval(keyword.value))
            elif isinstance(keyword.value, ast.Name) and keyword.value.id in assigned:
                arguments.extend(ast.literal_eval(assigned[keyword.value.id]).values())
            else:
                raise ValueError(f"no dictionary is assigned to {ast.unparse(keyword.value)}")
        return name, arguments, ast.literal_eval(test.comparators[0])
    except (ValueError, TypeError, AttributeError, SyntaxError) as error:
        raise ValueError(f"line {node.lineno} does not compare a call with literals: {error}") from error


def _cases(value: object, column: str) -> list[dict[str, Any]]:
    """Return the tests of a column: a list, its JSON, or its JSON as base64 of zlib of pickle."""
    if value is None or value == "":
        return []
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            value = _unpacked(value, column)
        except RecursionError as error:
            raise ValueError(f"{column!r} is nested too deeply") from error
    if not isinstance(value, list) or not all(isinstance(test, dict) for test in value):
        raise ValueError(f"{column!r} is not a list of tests")
    return value


def _unpacked(text: str, column: str) -> object:
    try:
        # A decompressor with a limit: a small column may unpack to more than the memory.
        unzip = zlib.decompressobj()
        data = unzip.decompress(base64.b64decode(text, validate=True), MAX_TESTS_BYTES)
        if unzip.unconsumed_tail:
            raise ValueError(f"it unpacks to over {MAX_TESTS_BYTES >> 20} MiB")
        if not unzip.eof:
            raise ValueError("it is cut off")
        value = _PlainUnpickler(io.BytesIO(data)).load()
        return json.loads(value) if isinstance(value, str | bytes) else value
    except (binascii.Error, zlib.error, pickle.UnpicklingError, EOFError, ValueError, *_DAMAGED) as error:
        raise ValueError(
            f"{column!r} is neither JSON nor packed tests (base64, zlib, pickle): {error}"
        ) from error


_DAMAGED = (AttributeError, IndexError, KeyError, MemoryError, OverflowError, RecursionError, TypeError)
"""Errors of the unpickler on damaged data, besides its own."""


class _PlainUnpickler(pickle.Unpickler):
    """An unpickler of text, numbers and containers only.

    A pickle that refers to a class or function could execute arbitrary code when it is loaded.
    """

    def find_class(self, module_name: str, global_name: str, /) -> Any:  # noqa: ANN401 - as in the base class
        raise pickle.UnpicklingError(f"it refers to {module_name}.{global_name}, which tests do not need")


def _object(value: object, column: str) -> dict[str, Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"{column!r} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{column!r} is not an object")
    return value
