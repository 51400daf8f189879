import pytest

from megatron_prime.rewards.math.values import number, parsed, values_equal


@pytest.mark.parametrize(
    ("gold", "given"),
    [
        (r"\frac{1}{8}", "0.125"),
        ("2^{-70}", r"\frac{1}{2^{70}}"),
        (r"\sqrt{3+2\sqrt{2}}", r"1+\sqrt{2}"),
        (r"\log_2 3", r"\frac{\ln 3}{\ln 2}"),
        ("e^{i\\pi}", "-1"),
        (r"\sin 2x", r"2\sin x\cos x"),
        ("x^{100}+y^{100}", "y^{100}+x^{100}"),
        ("(x+y)^{300}", "(y+x)^{300}"),
        ("3^{10^9}", r"9^{5\cdot 10^8}"),
        ("x+C", "c+x"),
        (r"\ln x^2", r"2\ln x"),
        ("(-1)^n", "(-1)^{n+2}"),
        (r"\begin{pmatrix}1/2\\0\end{pmatrix}", r"\begin{bmatrix}0.5\\0\end{bmatrix}"),
        ("8", "4(2)"),
        ("2^{10^6}+1", "1+4^{500000}"),
        (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\frac{1}{2}\begin{pmatrix}2&4\\6&8\end{pmatrix}"),
    ],
)
def test_equal_values(gold, given):
    assert values_equal(gold, given)


@pytest.mark.parametrize(
    ("gold", "given"),
    [
        (r"\frac{1}{8}", "0.1250001"),
        ("10^{-30}", "10^{-31}"),
        ("0", "10^{-300}"),
        (r"\sqrt{10^{300}+1}", "10^{150}"),
        (r"\pi", r"\pi+10^{-50}"),
        ("x+10^{-30}", "x+10^{-31}"),
        ("|x|", "x"),
        ("AB", "ab"),
        ("6", "2 3"),
        ("3^{10^9}", "3^{10^9}+1"),
        ("5", "5+x-x"),
        ("5", r"\frac{5}{0}"),
        ("10", r"10\text{ or more}"),
        ("x", "x'"),
        ("5", r"x\approx 5"),
        (r"\frac{1}{0}", r"\frac{2}{0}"),
    ],
)
def test_different_values(gold, given):
    assert not values_equal(gold, given)


def test_numbers_are_real_or_infinite():
    assert number(parsed(r"\frac{1}{2}")) == number(parsed("0.5"))
    assert number(parsed(r"-\infty")) == number(parsed(r"-2\infty")) is not None
    assert number(parsed("x")) is None
    assert number(parsed("i")) is None
    assert number(None) is None
