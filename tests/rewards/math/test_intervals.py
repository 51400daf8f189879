import pytest

from megatron_prime.rewards.math.intervals import real_set


@pytest.mark.parametrize(
    ("text", "variable", "intervals"),
    [
        ("x<3", "x", [("(", r"-\infty", "3", ")")]),
        ("3<x", "x", [("(", "3", r"\infty", ")")]),
        (r"x\ge 3", "x", [("[", "3", r"\infty", ")")]),
        (r"1<t\le 2", "t", [("(", "1", "2", "]")]),
        (r"2\ge x>1", "x", [("(", "1", "2", "]")]),
        ("x<1 or x>2", "x", [("(", r"-\infty", "1", ")"), ("(", "2", r"\infty", ")")]),
        (r"x\ne 3", "x", [("(", r"-\infty", "3", ")"), ("(", "3", r"\infty", ")")]),
        (r"|x|\le 2", "x", [("[", "0-(2)", "0+(2)", "]")]),
        ("|x-1|<2", "x", [("(", "(1)-(2)", "(1)+(2)", ")")]),
        ("|t+1|>2", "t", [("(", r"-\infty", "-(1)-(2)", ")"), ("(", "-(1)+(2)", r"\infty", ")")]),
        (r"[1,2)\cup(3,4]", "", [("[", "1", "2", ")"), ("(", "3", "4", "]")]),
        (r"x\in(1,2)", "", [("(", "1", "2", ")")]),
        (r"\{x\mid x<3\}", "", [("(", r"-\infty", "3", ")")]),
        (r"\{t \in (-\infty,\infty) | 1<t<2\}", "", [("(", "1", "2", ")")]),
    ],
)
def test_real_sets_are_parsed(text, variable, intervals):
    assert real_set(text) == (variable, intervals)


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
        "<",
        "x<",
        "|x|",
        "",
    ],
)
def test_other_texts_are_not_real_sets(text):
    assert real_set(text) is None
