import pytest

from megatron_prime.rewards.math.families import (
    Residues,
    progressions_equal,
    residues,
    residues_equal,
    split_parameter,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"x\equiv 3 \pmod{7}", Residues("x", ("3",), 7)),
        (r"3 \pmod 7", Residues("", ("3",), 7)),
        (r"3 (\bmod 7)", Residues("", ("3",), 7)),
        (r"n \equiv 1, 3 (\text{mod }8) + 1", None),
        (r"n \equiv 1, 3 (\text{mod} 8)", Residues("n", ("1", "3"), 8)),
        ("3", None),
        (r"\pmod 7", None),
    ],
)
def test_residues_are_parsed(text, expected):
    assert residues(text) == expected


def test_residues_are_compared_by_class():
    gold = Residues("x", ("1", "3"), 7)
    assert residues_equal(gold, Residues("", ("10", "-6"), 7))
    assert not residues_equal(gold, Residues("", ("1",), 7))
    assert not residues_equal(gold, Residues("", ("1", "3"), 8))
    assert not residues_equal(gold, Residues("y", ("1", "3"), 7))


@pytest.mark.parametrize(
    ("text", "parameter", "rest"),
    [
        (r"x=k\pi, k\in\mathbb{Z}", "k", r"x=k\pi"),
        (r"2n\pi \text{where} n\text{is an integer}", "n", r"2n\pi"),
        (r"k\pi", "", r"k\pi"),
        (r"\{k\pi \mid k\in\mathbb{Z}\}", "k", r"k\pi"),
    ],
)
def test_parameters_are_split(text, parameter, rest):
    assert split_parameter(text) == (parameter, rest)


def test_progressions_are_compared_as_sets():
    assert progressions_equal(r"\frac{\pi}{4}+k\pi", r"-\frac{3\pi}{4}+n\pi", "k", "n")
    assert progressions_equal(r"k\pi", r"-k\pi", "k", "k")
    assert not progressions_equal(r"k\pi", r"2k\pi", "k", "k")
    assert not progressions_equal(r"k\pi", r"\frac{\pi}{2}+k\pi", "k", "k")
    assert not progressions_equal(r"k^2\pi", r"k\pi", "k", "k")
    assert not progressions_equal("5", "5", "k", "k")
