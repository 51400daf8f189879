# ruff: noqa: RUF001 - the tests are about look-alike characters
import pytest

from megatron_prime.rewards.math.notation import (
    chosen_letter,
    exact_decimals,
    normalise,
    squeezed,
    unwrapped,
    words,
)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("４２", "42"),
        ("½", r"\frac{1}{2}"),
        ("1½", r"1\frac{1}{2}"),
        ("x²⁺ⁿ", "x^{2+n}"),
        ("x₁₂", "x_{12}"),
        ("√12", r"\sqrt{12}"),
        ("√(x+1)", r"\sqrt{x+1}"),
        (r"1\,000", "1000"),
        ("1,234,567.5", "1234567.5"),
        ("(1,234)", "(1,234)"),
        ("3e8", r"3\times 10^{8}"),
        ("1.5E-3", r"1.5\times 10^{-3}"),
        ("2e", "2e"),
        (r"\dfrac12", r"\frac{1}{2}"),
        (r"\left(1,2\right]", "(1,2]"),
        (r"x\leqslant 3", r"x\le 3"),
        (r"x\leq3", r"x\le3"),
        (r"\varnothing", r"\emptyset"),
        (r"\{\}", r"\emptyset"),
        ("No  solution.", r"\emptyset"),
        (r"$5$", "5"),
        (r"\mathrm{cm}", r"\text{cm}"),
        ("90°", r"90\degree"),
        (r"90^{\circ}", r"90\degree"),
        ("2 1/2", r"2\frac{1}{2}"),
        ("42.", "42"),
        ("−5", "-5"),
        (r"\begin{pmatrix}1\\ 2\end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
        (r"3+2\mathrm{i}", "3+2i"),
        (r"\$1,234.50", r"1234.50\text{ dollars}"),
        (r"101_{\text{two}}", "101_{2}"),
        (r"x_{\text{max}}", r"x_{\text{max}}"),
        (r"\color{red}{4}", "{4}"),
        (r"\tan 60^\circ", r"\tan(60\cdot\pi/180)"),
        ("1, 2, …", r"1, 2, \ldots"),
    ],
)
def test_answers_are_normalized_to_one_notation(text, normal):
    assert squeezed(normalise(text)) == squeezed(normal)


@pytest.mark.parametrize(
    ("text", "exact"),
    [
        ("0.50", r"\frac{1}{2}"),
        ("2.0", "2"),
        ("x+.25", r"x+\frac{1}{4}"),
        (r"0.\overline{3}", r"\frac{1}{3}"),
        (r"2.1\dot{6}", r"\frac{13}{6}"),
        (r".\overline{09}+1", r"\frac{1}{11}+1"),
        ("1.5x", r"\frac{3}{2}x"),
        ("3", "3"),
    ],
)
def test_decimals_become_exact_fractions(text, exact):
    assert exact_decimals(text) == exact


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("East", "east"),
        (r"\text{East}", "east"),
        (r"\text{(C)}", "c"),
        (r"\text{an Ellipse}", "ellipse"),
        ("a", None),
        ("(C)", "c"),
        ("Tuesday morning", "tuesday morning"),
        ("x", None),
        ("ab", None),
        ("2 east", None),
        (r"\pi", None),
    ],
)
def test_words_are_distinguished_from_mathematics(text, expected):
    assert words(text) == expected


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("A", "a"),
        ("(B)", "b"),
        (r"\text{(B) }12", "b"),
        ("C) 15", "c"),
        ("D.", "d"),
        (r"\text{Option D}", "d"),
        ("A or B", None),
        ("(A) or (B)", None),
        ("A) B) C)", None),
        ("ABC", None),
        ("x", None),
        ("12", None),
    ],
)
def test_multiple_choice_letters_are_recognized(text, letter):
    assert chosen_letter(text) == letter


def test_text_commands_do_not_change_the_answer():
    assert unwrapped(r"\text{7:30 PM}") == unwrapped(r"7:30\text{ PM}") == "7:30PM"
