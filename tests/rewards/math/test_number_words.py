import pytest

from megatron_prime.rewards.math.number_words import expand_multipliers, number_in_words


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("five", "5"),
        ("twenty-one", "21"),
        ("Three hundred and five", "305"),
        ("two million three hundred five", "2000305"),
        ("negative five", "-5"),
        ("one half", r"\frac{1}{2}"),
        ("half", r"\frac{1}{2}"),
        ("two-thirds", r"\frac{2}{3}"),
        ("a dozen", "12"),
        ("two and a half", r"2\frac{1}{2}"),
        ("three point one four", "3.14"),
        ("a hundred", "100"),
        ("a", None),
        ("point", None),
        ("zero", "0"),
        ("third", None),
        ("three five", None),
        ("twenty eleven", None),
        ("hundred", None),
        ("five or six", None),
        ("east", None),
        ("minus", None),
        ("", None),
    ],
)
def test_numbers_in_words(text, number):
    assert number_in_words(text) == number


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        (r"5\text{ million}", r"5\times 10^{6}"),
        ("2.5 million", r"2.5\times 10^{6}"),
        (r"5\text{ million people}", r"5\times 10^{6}\text{people}"),
        (r"3\text{ dozen}", r"3\times 12"),
        (r"9\text{ halves}", r"\frac{9}{2}"),
        (r"1.5\text{ thirds}", r"1.5\text{ thirds}"),
        (r"5\text{ millionaires}", r"5\text{ millionaires}"),
        ("7" * 300 + " x", "7" * 300 + " x"),
    ],
)
def test_multiples_are_written_out(text, expanded):
    assert expand_multipliers(text) == expanded
