import base64
import json
import os
import pickle
import zlib

import pytest

from megatron_prime.data import code_tests
from megatron_prime.data.code_tests import leetcode_tests, livecodebench_tests
from megatron_prime.rewards.code.comparison import outputs_equal, results_equal
from megatron_prime.rewards.code.ground_truth import read_tests


def packed(value):
    return base64.b64encode(zlib.compress(pickle.dumps(value))).decode()


CASES = [
    {"input": "1\n", "output": "2\n", "testtype": "stdin"},
    {"input": "5", "output": "6", "testtype": "stdin"},
]
CALLS = [{"input": '[1]\n"k"', "output": "null", "testtype": "functional"}]


@pytest.mark.parametrize(
    "private", [json.dumps(CASES[1:]), CASES[1:], packed(json.dumps(CASES[1:])), packed(CASES[1:])]
)
def test_stdin_tests_are_read_from_every_form_of_the_columns(private):
    assert json.loads(livecodebench_tests(json.dumps(CASES[:1]), private, "{}")) == {
        "inputs": ["1\n", "5"],
        "outputs": ["2\n", "6"],
    }


def test_function_calls_are_read():
    truth = json.loads(livecodebench_tests(CALLS, "", '{"func_name": "f"}'))
    assert truth == {"fn_name": "f", "inputs": [[[1], "k"]], "outputs": [[None]]}


class Attack:
    def __reduce__(self):
        return os.system, ("touch pwned",)


@pytest.mark.parametrize(
    ("public", "private", "metadata", "reason"),
    [
        ("[]", None, "{}", "0 tests"),
        (CASES, CALLS, "{}", r"kinds \['functional', 'stdin'\]"),
        (CALLS, None, "{}", "no func_name"),
        (CALLS, None, "{", "'metadata' is not JSON"),
        (CASES, "not packed", "{}", "'private_test_cases' is neither JSON nor packed"),
        (CASES, "{}", "{}", "is not a list of tests"),
        ([{"testtype": "stdin"}], None, "{}", "not in LiveCodeBench's format"),
    ],
)
def test_invalid_columns_are_explained(public, private, metadata, reason):
    with pytest.raises(ValueError, match=reason):
        livecodebench_tests(public, private, metadata)


def test_a_pickle_never_executes_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"refers to \w+\.system"):
        livecodebench_tests(CASES, packed(Attack()), "{}")
    assert not (tmp_path / "pwned").exists()


def test_a_decompression_bomb_is_not_unpacked(monkeypatch):
    monkeypatch.setattr(code_tests, "MAX_TESTS_BYTES", 1 << 20)
    with pytest.raises(ValueError, match="over 1 MiB"):
        livecodebench_tests(CASES, packed("x" * (1 << 22)), "{}")


LEETCODE = """
my_solution = Solution()
test_input = {"nums": [3, 1], "k": 2}
assert my_solution.top(**test_input) == [3]
test_input = {"nums": [], "k": 0}
assert my_solution.top(**test_input) == []
"""


def test_leetcode_asserts_are_read_in_the_order_of_the_text():
    assert json.loads(leetcode_tests(LEETCODE)) == {
        "fn_name": "top",
        "inputs": [[[3, 1], 2], [[], 0]],
        "outputs": [[[3]], [[]]],
    }
    check = "def check(candidate):\n    assert candidate(n = -1, s = 'a') == True\n    assert candidate(2, 'b') == None"
    assert json.loads(leetcode_tests(check, "Solution().find")) == {
        "fn_name": "find",
        "inputs": [[-1, "a"], [2, "b"]],
        "outputs": [[True], [None]],
    }


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("assert f(1) == g(2)", "line 1 .* literals"),
        ("assert f(1)", "line 1 does not compare"),
        ("assert f(**unknown) == 1", "no dictionary is assigned to unknown"),
        ("assert f(1) == 1\nassert g(1) == 1", r"call \['f', 'g'\]"),
        ("x = 1", r"call \[\]"),
        ("assert (", "not Python"),
    ],
)
def test_asserts_of_another_form_are_rejected(source, reason):
    with pytest.raises(ValueError, match=reason):
        leetcode_tests(source)


def test_the_code_verifier_reads_the_ground_truths():
    name, (first, second) = read_tests(leetcode_tests(LEETCODE))
    assert name == "top"
    assert (json.loads(first.stdin), json.loads(second.stdin)) == ([[3, 1], 2], [[], 0])
    assert results_equal(first.expected, "[3]") and not results_equal(first.expected, "[1]")
    assert results_equal(second.expected, "[]") and not results_equal(second.expected, "[0]")
    name, (first, _) = read_tests(livecodebench_tests(CASES, "", "{}"))
    assert name is None and first.stdin == "1\n"
    assert outputs_equal(first.expected, "2\n") and not outputs_equal(first.expected, "3\n")


def raw(pickled, end=None):
    return base64.b64encode(zlib.compress(pickled)[:end]).decode()


CALL = {"input": "1", "output": "1", "testtype": "functional"}
DAMAGED = {
    # public tests, private tests, metadata
    "a list as kind": ([CALL | {"testtype": ["x"]}, CALL], None, "{}"),
    "no kind": ([CALL | {"testtype": None}, CALL], None, "{}"),
    "deep": ("[" * 100_000, None, "{}"),
    "deep metadata": ([CALL], None, "[" * 100_000),
    "deep arguments": ([CALL | {"input": "[" * 100_000}], None, {"func_name": "f"}),
    "no output": ([CALL | {"output": None}], None, {"func_name": "f"}),
    "a number as input": ([CALL | {"input": 1}], None, {"func_name": "f"}),
    "a list as name": ([CALL], None, {"func_name": ["f"]}),
    "bytes": (b"[]", None, "{}"),
    "a pickle that appends to a number": (CASES, raw(b"K\x01K\x02a."), "{}"),
    "a pickle with a list as key": (CASES, raw(b"}]K\x02s."), "{}"),
    "a pickle of a terabyte": (CASES, raw(b"\x80\x05\x96\0\0\0\0\0\x01\0\0."), "{}"),
    "a pickle that builds": (CASES, raw(b"}}b."), "{}"),
    "cut off": (CASES, raw(pickle.dumps("[" + "1," * 9999 + "1]"), -9), "{}"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_columns_are_bad_rows(case):
    with pytest.raises(ValueError):
        livecodebench_tests(*DAMAGED[case])


def test_an_argument_may_have_any_character():
    calls = [CALL | {"input": '"a\u2028b\x85"\n2'}]
    assert json.loads(livecodebench_tests(calls, None, {"func_name": "f"}))["inputs"] == [["a\u2028b\x85", 2]]


@pytest.mark.parametrize("literal", ["{1, 2}", "b'x'", "1j", "{(1, 2): 3}", "..."])
def test_literals_that_json_does_not_have_are_rejected(literal):
    with pytest.raises(ValueError, match="cannot be written as JSON"):
        leetcode_tests(f"assert f({literal}) == 3")
