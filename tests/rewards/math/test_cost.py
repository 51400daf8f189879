import math

import pytest

from megatron_prime.rewards.math.cost import MAX_BITS, is_expensive, num_bits
from megatron_prime.rewards.math.values import parsed


@pytest.mark.parametrize(
    "text", [r"\binom{1000000}{5}", "(" * 30 + ")" * 30, "|x|" * 20, "7" * 401, "x^2" * 41]
)
def test_texts_that_are_expensive_to_parse_are_recognized(text):
    assert is_expensive(text)


@pytest.mark.parametrize(
    "text",
    [
        "9^{9^9}",
        "2^{1000000}",
        "(9!)!",
        "99999!",
        "(2^{999})^{999}",
        "2^{2^{2^n}}",
        "e^{e^{e^{10}}}",
        "2^{10^{400}}",
    ],
)
def test_values_that_are_expensive_to_evaluate_are_recognized(text):
    assert not is_expensive(text)
    assert num_bits(parsed(text)) > MAX_BITS


@pytest.mark.parametrize(
    "text",
    [
        "2^{10}",
        "10!",
        "e^{x^y}",
        "x^2+y^2",
        "2^{2019}",
        "10^{-3}",
        "x!",
        "1" * 399,
        "(x+y+z)^{300}",
        "2^{1012}-2^{506}",
        r"\sin 5",
    ],
)
def test_cheap_answers_are_recognized(text):
    assert not is_expensive(text)
    assert num_bits(parsed(text)) <= MAX_BITS


def test_bits_are_an_upper_limit():
    assert math.log2(3**1000) <= num_bits(parsed("3^{1000}"))
    assert math.log2(math.factorial(100)) <= num_bits(parsed("100!"))
