import json
import sys

import pytest

from megatron_prime.rewards.code.ground_truth import evenly_spaced, read_tests

BIG = "9" * 6000

READ = {
    # name -> ground truth, function name, inputs, expected results
    "lines": ({"inputs": ["1 2\n"], "outputs": ["3\n"]}, None, ["1 2\n"], ["3\n"]),
    "lists of lines": ({"inputs": [["1 2", "3"]], "outputs": [["4"]]}, None, ["1 2\n3"], ["4"]),
    "numbers": ({"inputs": [7, [1, 2.5]], "outputs": [8, 3]}, None, ["7", "1\n2.5"], ["8", "3"]),
    "line ends": (
        {"inputs": ["1\r\n2\r", ["a\r", "b"]], "outputs": ["x\r\ny\r", "z"]}, None,
        ["1\n2\n", "a\nb"], ["x\ny\n", "z"],
    ),
    "null as name": ({"fn_name": None, "inputs": ["1"], "outputs": ["1"]}, None, ["1"], ["1"]),
    "some blank": ({"inputs": ["1", "2"], "outputs": ["", "x"]}, None, ["1", "2"], ["", "x"]),
    "calls": (
        {"fn_name": "f", "inputs": [[1, "a\n"], []], "outputs": [[3], None]}, "f",
        ['[1, "a\\n"]\n', "[]\n"], [[3], None],
    ),
    "calls as text": (
        {"fn_name": "f", "inputs": ['[1, 2]\n"a"', "3\r\n\n4\n", ""], "outputs": ["true", "[1]", "0"]}, "f",
        ['[[1, 2], "a"]\n', "[3, 4]\n", "[]\n"], [True, [1], 0],
    ),
    "infinite": ({"fn_name": "f", "inputs": [[1]], "outputs": [float("inf")]}, "f", ["[1]\n"], [float("inf")]),
}  # fmt: skip


@pytest.mark.parametrize("case", READ)
def test_tests_are_read(case):
    truth, name, inputs, expected = READ[case]
    fn_name, tests = read_tests(json.dumps(truth))
    assert fn_name == name
    assert [test.stdin for test in tests] == inputs
    assert [test.expected for test in tests] == expected


def test_integers_of_any_length_are_read_and_the_limit_stays():
    limit = sys.get_int_max_str_digits()
    _, (test,) = read_tests(f'{{"fn_name": "f", "inputs": [[{BIG}]], "outputs": [{BIG}1]}}')
    assert test.stdin == f"[{BIG}]\n"
    assert test.expected % 10 == 1
    with pytest.raises(ValueError, match="half"):
        read_tests('{"inputs": ["\\ud800"], "outputs": ["1"]}')
    assert sys.get_int_max_str_digits() == limit


WRONG = {
    "a number": ("42", "int without lists"),
    "no JSON": ("not json", "must be JSON"),
    "a list": ("[1]", "list without lists"),
    "nothing": ("", "must be JSON"),
    "other keys": ('{"input": ["1"], "output": ["1"]}', r"its keys are \['input', 'output'\]"),
    "different numbers": ('{"inputs": ["1"], "outputs": []}', "of equal length"),
    "no tests": ('{"inputs": [], "outputs": []}', "non-empty"),
    "one text": ('{"inputs": "1", "outputs": "1"}', "non-empty lists"),
    "a name of two words": (
        '{"fn_name": "a b", "inputs": [[1]], "outputs": [1]}',
        "not a valid function name",
    ),
    "a keyword": ('{"fn_name": "lambda", "inputs": [[1]], "outputs": [1]}', "not a valid function name"),
    "an empty name": ('{"fn_name": "", "inputs": [[1]], "outputs": [1]}', "not a valid function name"),
    "a list as name": ('{"fn_name": ["f"], "inputs": [[1]], "outputs": [1]}', "not a valid function name"),
    "an argument": (
        '{"fn_name": "f", "inputs": [1], "outputs": [1]}',
        r"inputs\[0\] must be the list of arguments",
    ),
    "arguments by name": ('{"fn_name": "f", "inputs": [{"a": 1}], "outputs": [1]}', "list of arguments"),
    "arguments that are no JSON": (
        '{"fn_name": "f", "inputs": ["x"], "outputs": ["1"]}',
        r"inputs\[0\] must be JSON",
    ),
    "a result that is no JSON": (
        '{"fn_name": "f", "inputs": ["1"], "outputs": ["x"]}',
        r"outputs\[0\] must be JSON",
    ),
    "text and a value": ('{"fn_name": "f", "inputs": ["1"], "outputs": [1]}', r"outputs\[0\] is a int"),
    "null as input": ('{"inputs": ["1", null], "outputs": ["1", "1"]}', r"inputs\[1\] must be text"),
    "null as output": ('{"inputs": ["1"], "outputs": [null]}', r"outputs\[0\] must be text"),
    "a truth value": ('{"inputs": ["1"], "outputs": [true]}', r"outputs\[0\] must be text"),
    "calls without a name": (
        '{"inputs": [[[1], 2]], "outputs": [["1"]]}',
        r"inputs\[0\] must be .* not a list",
    ),
    "an object": ('{"inputs": [{"a": 1}], "outputs": ["1"]}', r"inputs\[0\] must be text"),
    "NaN": ('{"fn_name": "f", "inputs": [[1]], "outputs": [NaN]}', "NaN is equal to no result"),
    "half a character": ('{"inputs": ["1"], "outputs": ["\\ud800"]}', "lone surrogate"),
    "deep": ('{"inputs": ' + "[" * 100_000, "must be JSON"),
    "all blank": ('{"inputs": ["1", "2"], "outputs": ["", " \\n"]}', "prints nothing would be right"),
    "all null": (
        '{"fn_name": "f", "inputs": [[1], [2]], "outputs": [null, [null]]}',
        "does nothing would be right",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_shape_is_refused(case):
    answer, reason = WRONG[case]
    with pytest.raises(ValueError, match=reason):
        read_tests(answer)


def test_tests_that_nothing_passes_are_blank():
    _, tests = read_tests('{"inputs": ["1", "2", "3"], "outputs": [" \\n", "0", [""]]}')
    assert [test.is_blank for test in tests] == [True, False, True]
    _, tests = read_tests('{"fn_name": "f", "inputs": [[], [], [], []], "outputs": [null, [null], "", []]}')
    assert [test.is_blank for test in tests] == [True, True, False, False]


def test_a_subset_of_the_tests_is_evenly_spaced():
    assert evenly_spaced(list(range(10)), 4) == [0, 3, 6, 9]
    assert evenly_spaced(list(range(3)), 4) == [0, 1, 2]
    assert evenly_spaced(list(range(3)), 1) == [0]
