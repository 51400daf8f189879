import pytest

from megatron_prime.data.whole_spans import whole_spans


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a $x$ b $$y$$", ["$x$", "$$y$$"]),
        (r"\(a\) \[b\]", [r"\(a\)", r"\[b\]"]),
        (r"cost \$5 and $x$", ["$x$"]),
        ("$5 and $6", []),
        ("$ x $", []),
        ("$a\n\nb$", []),
        ("$a\nb$", ["$a\nb$"]),
        (r"$a \$ b$", [r"$a \$ b$"]),
        (r"\begin{a}\begin{a}x\end{a}\end{a}y", [r"\begin{a}\begin{a}x\end{a}\end{a}"]),
        (r"\begin{align*}$x\end{align*} $y$", [r"\begin{align*}$x\end{align*}", "$y$"]),
        (r"\begin{a}\end{b}", []),
        (r"\\[2pt] x \]", []),
        ("```\n$x\n```\n$y$", ["```\n$x\n```", "$y$"]),
        ("x ``` y $z$", ["$z$"]),
        ("```py\nopen $x$", ["```py\nopen $x$"]),
        ("", []),
    ],
)
def test_formulas_and_code_are_found(text, parts):
    assert [text[start:end] for start, end in whole_spans(text)] == parts


def test_an_unpaired_dollar_does_not_match_far_away():
    text = "$x" + " y" * 3000 + "z$"
    assert whole_spans(text) == []
