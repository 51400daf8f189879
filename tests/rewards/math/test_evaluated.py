import pytest

from megatron_prime.rewards.math.evaluated import is_unevaluated


@pytest.mark.parametrize(
    ("gold", "given"),
    [
        ("2", r"\int_0^\pi \sin x dx"),
        ("6", r"\gcd(54,24)"),
        ("12", r"\operatorname{lcm}(4,6)"),
        ("2x", r"\frac{d}{dx}x^2"),
        ("-2", r"\det A"),
        ("3", r"\log_{2} 8"),
        ("7", "|-7|"),
        (r"\frac{1}{2}", r"\sin(30\cdot\pi/180)"),
        (r"\frac{\pi}{4}", r"\arctan 1"),
        ("120", r"\binom{10}{3}"),
        ("42", r"\max(41,42)"),
    ],
)
def test_operations_to_be_done_are_recognized(gold, given):
    assert is_unevaluated(gold, given)


@pytest.mark.parametrize(
    ("gold", "given"),
    [
        ("1024", "2^{10}"),
        ("2", r"\sqrt{4}"),
        (r"\sum_{k=1}^{n} k", r"\sum_{j=1}^{n} j"),
        (r"\frac{n(n-1)}{2}", r"\binom{n}{2}"),
        (r"\ln 2", r"\frac{1}{2}\ln 4"),
        (r"\tan x", r"\frac{\sin x}{\cos x}"),
        (r"1+i", r"\sqrt{2}(\cos(45\cdot\pi/180)+i\sin(45\cdot\pi/180))"),
        ("60", r"60\text{ min}"),
        (r"\frac{d}{e}", r"\frac{d}{e}"),
    ],
)
def test_results_are_recognized(gold, given):
    assert not is_unevaluated(gold, given)
