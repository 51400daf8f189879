import pytest

from megatron_prime.data.final_answers import gsm8k_answer, last_boxed, plain_number, without_dollars


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("3 + 4 = 7\n#### 7", "7"),
        ("#### 1\nno\n#### 1,234,567.", "1234567"),
        ("so\n#### $ 12", "12"),
        ("#### -0.5", "-0.5"),
        ("no mark", None),
        ("#### ", None),
    ],
)
def test_the_gsm8k_answer_follows_the_last_mark(text, answer):
    assert gsm8k_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{1} and \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{ \{1, 2\} }", r"\{1, 2\}"),
        (r"\fbox{3}", "3"),
        (r"\boxed {4}", "4"),
        (r"\boxed{\boxed{5}}", "5"),
        (r"\boxed{a\\b}", r"a\\b"),
        (r"\boxed{open {", None),
        (r"\boxed{}", None),
        (r"\boxed{8} then \boxed{open", "8"),
        ("none", None),
    ],
)
def test_the_last_complete_box_is_the_answer(text, answer):
    assert last_boxed(text) == answer


def test_numbers_and_dollar_signs_are_normalized():
    pairs = [
        ("27.0", "27"),
        ("073", "73"),
        ("0", "0"),
        ("000", "0"),
        ("0.5", "0.5"),
        ("-3.00", "-3"),
        ("x", "x"),
    ]
    assert [plain_number(text) for text, _ in pairs] == [wanted for _, wanted in pairs]
    assert without_dollars(" $$x$$ ") == "x"
    assert without_dollars("$1$ or $2") == "$1$ or $2"
    assert without_dollars("$") == "$"
