# ruff: noqa: RUF001 - look-alike characters are what is tested
import threading
import time

import pytest

from megatron_prime.rewards.math_answer import MathAnswer, answers_equal, values_equal

# (ground truth, what a response put into its box)
EQUAL = [
    ("42", "42"),
    ("42", " 42. "),
    ("42", "$42$"),
    ("42", "４２"),
    ("1/2", "½"),
    ("\\frac{3}{2}", "1½"),
    ("x^2", "x²"),
    ("\\emptyset", "\\varnothing"),
    ("\\text{no solution}", "\\emptyset"),
    ("300000000", "3e8"),
    ("3\\times10^8", "3e8"),
    ("1000", "1\\,000"),
    ("1000", "1,000"),
    ("1,000", "1000"),
    ("1000", "1{,}000"),
    ("1000", "1\\!000"),
    ("1000000", "1 000 000"),
    ("\\frac{1}{2}", "0.5"),
    ("0.5", "\\frac12"),
    ("0.50", "0.5"),
    ("50\\%", "0.5"),
    ("50\\%", "50"),
    ("50", "50\\%"),
    ("x^2+2x+1", "(x+1)^2"),
    ("(1,2)", "(1, 2)"),
    ("(1,2)", "\\left(1,2\\right)"),
    ("(\\frac12,3)", "(0.5,3)"),
    ("\\{1,2\\}", "2,1"),
    ("1,2", "\\{2,1\\}"),
    ("2,3", "2 \\text{ or } 3"),
    ("2,3", "x=2 or x=3"),
    ("1,2", "(1,2)"),
    ("x=5", "5"),
    ("5", "x=5"),
    ("y=2x+1", "2x+1"),
    ("\\text{A}", "A"),
    ("A", "\\text{(A)}"),
    ("C", "(C)"),
    ("\\text{east}", "East"),
    ("90^\\circ", "90"),
    ("90", "90°"),
    ("(-\\infty,3)", "x<3"),
    ("x<3", "(-\\infty,3)"),
    ("(1,2]", "1<x\\le 2"),
    ("1<x<2", "2>x>1"),
    ("[5,\\infty)", "x≥5"),
    ("(-\\infty,3]\\cup[5,\\infty)", "x\\le 3 \\text{ or } x\\ge 5"),
    ("x>3", "3<x"),
    ("x \\in [1,2]", "[1,2]"),
    ("\\begin{pmatrix}1\\\\2\\end{pmatrix}", "\\begin{pmatrix}1\\\\2\\end{pmatrix}"),
    ("5\\text{ cm}", "5"),
    ("5", "5\\text{ cm}"),
    ("5\\text{ cm}", "5 cm"),
    ("5 centimeters", "5\\,\\mathrm{cm}"),
    ("5\\text{ cm}^2", "5\\text{ cm}^{2}"),
    ("2\\sqrt{3}", "\\sqrt{12}"),
    ("2\\sqrt{3}", "2√3"),
    ("\\pm 2", "2,-2"),
    ("2,-2", "\\pm 2"),
    ("1\\frac12", "1.5"),
    ("1 1/2", "3/2"),
    ("2^{10}", "1024"),
    ("2^{2019}", "2^{2019}"),
    ("-5", "−5"),
    ("\\frac{a}{b}", "a/b"),
    ("3+2i", "2i+3"),
    ("101_2", "101"),
    ("\\$5", "5"),
    ("\\dfrac{\\pi}{2}", "π/2"),
    ("6", "3!"),
    ("10^{100}", "10^{100}"),
    ("\\boxed{7}", "7"),
    ("x_1", "x_1"),
    ("\\tan x", "\\tan x"),
    ("\\frac{\\sqrt{2}}{2}", "\\frac{1}{\\sqrt{2}}"),
    ("\\mathbb{R}", "(-\\infty,\\infty)"),
    ("12.5", "\\frac{25}{2}"),
    ("f(x)=x+1", "x+1"),
    ("3,4,5", "5, 3, and 4"),
    ("ab", "ba"),
    ("2.5\\times 10^{3}", "2500"),
    (".5", "1/2"),
    ("\\frac{1}{2}x", "0.5x"),
    ("10\\text{ meters}", "10 m"),
]

DIFFERENT = [
    ("42", "41 or 42"),
    ("42", "41, 42"),
    ("42", "42,42"),
    ("5", "5 or 5"),
    ("5\\text{ cm}", "5\\text{ m}"),
    ("5 cm", "5 m"),
    ("\\frac{1}{3}", "0.3333333333"),
    ("\\sqrt{2}", "1.41421356"),
    ("\\pi", "3.14159265"),
    ("3.14", "\\pi"),
    ("0.1", "0.1000001"),
    ("42", "42.0000001"),
    ("x<3", "x\\le 3"),
    ("x<3", "y<3"),
    ("(1,2)", "[1,2]"),
    ("(1,2)", "(2,1)"),
    ("(1,2)", "1,2"),
    ("1,2", "(2,1)"),
    ("2,3", "2"),
    ("2", "2,3"),
    ("\\text{east}", "seat"),
    ("\\text{Monday}", "\\text{Tuesday}"),
    ("10_2", "10_3"),
    ("42", "10^{10^{10}}"),
    ("42", "9^9^9"),
    ("42", "10!!!"),
    ("42", "(10!)!"),
    ("42", "100000!"),
    ("42", "x"),
    ("42", ""),
    ("7", "77"),
    ("A", "B"),
    ("1234567", "1234568"),
    ("x=5", "y=5"),
    ("5\\text{ cm}^2", "5\\text{ cm}"),
    ("42", "42 \\text{ or so}"),
    ("\\frac{1}{3}", "33\\%"),
    ("[1,2)\\cup(3,4]", "[1,2)"),
    ("0.5", "50"),
    ("42", "4" * 500),
    ("\\emptyset", "0"),
    ("x+1", "1+x=0"),
    ("1", "\\frac{x}{x}+1"),
    ("(1,\\infty)", "x<1"),
    ("-2", "\\pm 2"),
    ("2", "x^{2}"),
    ("\\infty", "-\\infty"),
    ("42", "\\text{the answer}"),
]


def verify(answer, boxed):
    return MathAnswer().verify(rf"Thus \boxed{{{boxed}}}.", answer)


@pytest.mark.parametrize(("answer", "boxed"), EQUAL)
def test_equal_answers_are_accepted(answer, boxed):
    assert verify(answer, boxed) == 1.0


@pytest.mark.parametrize(("answer", "boxed"), DIFFERENT)
def test_other_answers_are_rejected(answer, boxed):
    assert verify(answer, boxed) == 0.0


@pytest.mark.parametrize(
    ("response", "reward"),
    [
        ("the answer is 42", 0.0),
        ("", 0.0),
        (r"\boxed{42", 0.0),
        (r"\fbox{42}", 1.0),
        (r"\boxed{41} no, \boxed{42}", 1.0),
        (r"\boxed{42} no, \boxed{41}", 0.0),
        (r"\boxed{41} or \boxed{42}", 0.0),
        (r"\boxed{41}, \boxed{42}", 0.0),
    ],
)
def test_only_the_boxed_answer_counts(response, reward):
    assert MathAnswer().verify(response, "42") == reward


def test_boxes_side_by_side_are_the_parts_of_one_answer():
    assert MathAnswer().verify(r"$\boxed{3}$ and $\boxed{2}$", "2, 3") == 1.0
    assert MathAnswer().verify(r"\boxed{x=3}, \boxed{x=2}", "2, 3") == 1.0


def test_a_blank_ground_truth_is_an_error():
    with pytest.raises(ValueError, match="blank"):
        verify("  ", "1")


@pytest.mark.parametrize(
    "boxed",
    [
        "10^{10^{10}}",
        "9^9^9",
        "10!!!",
        "((10!)!)!",
        "2^{99999999}",
        "(10^{900})^{900}",
        "9" * 100_000,
        "x^{1}" * 90,
    ],
)
def test_costly_answers_return_at_once(boxed):
    start = time.monotonic()
    assert verify("42", boxed) == 0.0
    assert time.monotonic() - start < 2.0


def test_it_works_off_the_main_thread():
    rewards = []
    thread = threading.Thread(target=lambda: rewards.append(verify("1/2", "0.5")))
    thread.start()
    thread.join()
    assert rewards == [1.0]


def test_text_of_any_kind_never_raises():
    for text in [
        "\\",
        "{",
        "}}",
        "\\frac{",
        "^",
        "_",
        "\\sqrt",
        "(",
        "[,]",
        "\\pm",
        "=",
        "1=2=3",
        "\0",
        "\ud800",
        "∮",
        "," * 99,
    ]:
        assert not answers_equal("42", text), text


def test_values_are_compared_exactly():
    assert values_equal(r"\frac{1}{8}", "0.125")
    assert not values_equal(r"\frac{1}{8}", "0.1250001")
    assert not values_equal("10", r"10\text{ or more}")
