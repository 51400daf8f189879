import pytest

from megatron_prime.rewards.math.cost import is_expensive


@pytest.mark.parametrize(
    "text",
    [
        "(x+y+z)^{300}",
        r"\binom{1000000}{5}",
        "(" * 30 + ")" * 30,
        "|x|" * 20,
        "9^9^9",
        "9^{9^9}",
        "2^{100000}",
        "10!!",
        "(9!)!",
        "5000!",
        "7" * 401,
        "(2^{999})^{999}",
    ],
)
def test_expensive_answers_are_recognized(text):
    assert is_expensive(text)


@pytest.mark.parametrize(
    "text", ["2^{10}", "10!", "e^{x^y}", "x^2+y^2", "2^{2019}", "10^{-3}", "x!", "1" * 399]
)
def test_cheap_answers_are_recognized(text):
    assert not is_expensive(text)
