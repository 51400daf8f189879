import pytest

from megatron_prime.rewards.math.intervals import ALL, RealSet, merged, real_set


@pytest.mark.parametrize(
    ("text", "variable", "intervals"),
    [
        ("x<3", "x", [("(", r"-\infty", "3", ")")]),
        ("3<x", "x", [("(", "3", r"\infty", ")")]),
        (r"x\ge 3", "x", [("[", "3", r"\infty", ")")]),
        (r"1<t\le 2", "t", [("(", "1", "2", "]")]),
        (r"2\ge x>1", "x", [("(", "1", "2", "]")]),
        ("x<1 or x>2", "x", [("(", r"-\infty", "1", ")"), ("(", "2", r"\infty", ")")]),
        (r"|x|\le 2", "x", [("[", "0-(2)", "0+(2)", "]")]),
        ("|x-1|<2", "x", [("(", "(1)-(2)", "(1)+(2)", ")")]),
        ("|t+1|>2", "t", [("(", r"-\infty", "-(1)-(2)", ")"), ("(", "-(1)+(2)", r"\infty", ")")]),
        (r"[1,2)\cup(3,4]", "", [("[", "1", "2", ")"), ("(", "3", "4", "]")]),
        (r"x\in(1,2)", "", [("(", "1", "2", ")")]),
        (r"\{x\mid x<3\}", "", [("(", r"-\infty", "3", ")")]),
        ("x>1 and x<3", "x", [("(", "1", "3", ")")]),
        (r"(-\infty,\infty)\text{greater than or equal to}3", "x", [("[", "3", r"\infty", ")")]),
        (r"\{t \in (-\infty,\infty) | 1<t<2\}", "", [("(", "1", "2", ")")]),
    ],
)
def test_real_sets_are_parsed(text, variable, intervals):
    found = real_set(text)
    assert found is not None
    assert (found.variable, found.intervals, found.points, found.excluded) == (variable, intervals, [], [])


@pytest.mark.parametrize(
    ("text", "intervals", "excluded"),
    [
        (r"x\ne 3", [ALL], ["3"]),
        (r"x\ne \pm 3", [ALL], ["3", "-3"]),
        (r"x\ne 1, 2", [ALL], ["1", "2"]),
        (r"x>0, x\ne 1", [("(", "0", r"\infty", ")")], ["1"]),
        (r"(-\infty,\infty)\setminus\{1,2\}", [ALL], ["1", "2"]),
        (r"(-\infty,\infty)\text{except }1", [ALL], ["1"]),
        (r"(-\infty,\infty)\text{or }1", None, None),
        (r"(-\infty,\infty)\text{except} 1\text{and}2", [ALL], ["1", "2"]),
        (r"\{x\mid x\ge 0, x\ne 1\}", [("[", "0", r"\infty", ")")], ["1"]),
    ],
)
def test_points_are_excluded(text, intervals, excluded):
    found = real_set(text)
    assert (found and found.intervals, found and found.excluded) == (intervals, excluded)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (r"[0,1]\cup[1,2]", "[0,2]"),
        (r"x\ne 0", r"(-\infty,0)\cup(0,\infty)"),
        (r"[0,2]\setminus\{0\}", "(0,2]"),
        (r"(0,1)\cup\{1\}", "(0,1]"),
    ],
)
def test_equal_sets_are_merged_to_equal_intervals(one, other):
    one_set, other_set = real_set(one), real_set(other)
    assert one_set is not None
    assert other_set is not None
    assert merged(one_set) == merged(other_set) is not None


def test_sets_without_real_ends_are_not_merged():
    assert merged(RealSet(intervals=[("(", "a", "b", ")")])) is None
    assert merged(RealSet(intervals=[("(", "2", "1", ")")])) is None


@pytest.mark.parametrize(
    "text",
    [
        "5",
        "x=3",
        "x<y<z<w",
        "1<2",
        r"x\in\{1,2\}",
        r"\{x\mid y<3\}",
        r"\{1,2\}",
        "x<1, y<2",
        "x>1 and x>3",
        "<",
        "x<",
        "|x|",
        "",
    ],
)
def test_other_texts_are_not_real_sets(text):
    assert real_set(text) is None
