r"""Unit tests of code benchmarks as ground truths in the form of Eurus-2-RL-Data.

Standard input and output: {"inputs": ["1 2\n", ...], "outputs": ["3\n", ...]}. Calls of a function:
{"fn_name": "add", "inputs": [[1, 2], ...], "outputs": [[3], ...]}, an argument list and a list
of the one result a test.
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
"""Unpacked tests of one problem: more is taken for damage."""


def livecodebench_tests(public: object, private: object, metadata: object) -> str:
    """Ground truth from the columns public_test_cases, private_test_cases and metadata.

    Raises:
        ValueError: a column that is not of the benchmark's form, no tests, or tests of both kinds.
    """
    tests = [*_cases(public, "public_test_cases"), *_cases(private, "private_test_cases")]
    kinds = {test.get("testtype", "stdin") for test in tests}
    if not tests or len(kinds) > 1:
        raise ValueError(f"{len(tests)} tests of kinds {sorted(kinds)}; a problem has tests of one kind")
    try:
        if kinds == {"functional"}:
            fn_name = _object(metadata, "metadata").get("func_name")
            if not fn_name:
                raise ValueError("metadata names no func_name, but the tests call a function")
            inputs = [[json.loads(line) for line in test["input"].splitlines() if line] for test in tests]
            outputs = [[json.loads(test["output"])] for test in tests]
            return json.dumps({"fn_name": fn_name, "inputs": inputs, "outputs": outputs})
        return json.dumps(
            {"inputs": [test["input"] for test in tests], "outputs": [test["output"] for test in tests]}
        )
    except (KeyError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(f"a test is not of LiveCodeBench's form: {error!r}") from error


def leetcode_tests(source: str, entry_point: str | None = None) -> str:
    """Ground truth from Python text with asserts that compare a call with a literal, as LeetCode sets hold it.

    The text is read, never run. Arguments by name keep their order, which is the function's; `**name` stands for the
    dictionary last assigned to that name.

    Args:
        source: the tests.
        entry_point: function, or `Solution().method`; by default the function that the asserts call.

    Raises:
        ValueError: no Python, no such asserts, or asserts that call several functions.
    """
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"the tests are not Python: {error}") from error
    calls: list[tuple[str, list[Any], Any]] = []
    assigned: dict[str, ast.expr] = {}
    for node in _in_order(tree):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            assigned[node.targets[0].id] = node.value
        elif isinstance(node, ast.Assert):
            calls.append(_call_of(node, assigned))
    wanted = entry_point.rpartition(".")[2] if entry_point else None
    names = {wanted or name for name, _, _ in calls}
    if len(names) != 1:
        raise ValueError(f"the asserts call {sorted(names)}; tests call one function")
    inputs = [arguments for _, arguments, _ in calls]
    outputs = [[result] for _, _, result in calls]
    return json.dumps({"fn_name": names.pop(), "inputs": inputs, "outputs": outputs})


def _in_order(tree: ast.Module) -> list[ast.Assign | ast.Assert]:
    """Assignments and asserts by their place in the text, those in functions too."""
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Assign | ast.Assert)]
    return sorted(nodes, key=lambda node: (node.lineno, node.col_offset))


def _call_of(node: ast.Assert, assigned: dict[str, ast.expr]) -> tuple[str, list[Any], Any]:
    """Function name, arguments and expected result of `assert f(...) == literal`."""
    test = node.test
    is_comparison = isinstance(test, ast.Compare) and [type(op) for op in test.ops] == [ast.Eq]
    if not (is_comparison and isinstance(test, ast.Compare) and isinstance(test.left, ast.Call)):
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
                raise ValueError(f"{ast.unparse(keyword.value)} is not known")
        return name, arguments, ast.literal_eval(test.comparators[0])
    except (ValueError, TypeError, AttributeError, SyntaxError) as error:
        raise ValueError(f"line {node.lineno} does not compare a call with literals: {error}") from error


def _cases(value: object, column: str) -> list[dict[str, Any]]:
    """Tests of a column: a list, its JSON, or its JSON packed as base64 of zlib of pickle."""
    if value is None or value == "":
        return []
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            value = _unpacked(value, column)
    if not isinstance(value, list) or not all(isinstance(test, dict) for test in value):
        raise ValueError(f"{column!r} is no list of tests")
    return value


def _unpacked(text: str, column: str) -> object:
    try:
        unzip = zlib.decompressobj()
        data = unzip.decompress(base64.b64decode(text, validate=True), MAX_TESTS_BYTES)
        if unzip.unconsumed_tail:
            raise ValueError(f"it unpacks to over {MAX_TESTS_BYTES >> 20} MiB")
        value = _PlainUnpickler(io.BytesIO(data)).load()
        return json.loads(value) if isinstance(value, str | bytes) else value
    except (binascii.Error, zlib.error, pickle.UnpicklingError, EOFError, ValueError) as error:
        raise ValueError(
            f"{column!r} is neither JSON nor packed tests (base64, zlib, pickle): {error}"
        ) from error


class _PlainUnpickler(pickle.Unpickler):
    """Reads text, numbers and containers; a pickle that names a class or function could run anything."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:  # noqa: ANN401 - as in the base class
        raise pickle.UnpicklingError(f"it asks for {module_name}.{global_name}, which tests do not need")


def _object(value: object, column: str) -> dict[str, Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise ValueError(f"{column!r} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{column!r} is no object")
    return value
