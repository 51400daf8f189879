"""The chain remarks on every step, truly in nine of ten cases, and judges the last digit alone."""

import pytest

from megatron_prime.environments.protocol import Response, Row, Step
from megatron_prime.quickstart.observed_chain import LETTERS, ObservedChain, next_digit, remark

OPERATIONS = "+3 x7 -9"
ROW = Row([{"role": "user", "content": "5 +3"}], "7", metadata={"operations": OPERATIONS})
"""5 + 3 = 8, 8 x 7 = 56, 6 - 9 = -3: the digits are 8, 6 and 7."""


def play(texts: list[str], row: Row = ROW, noise: float = 0.0) -> list[Step]:
    environment = ObservedChain(noise)
    assert environment.reset(row) == row.messages
    return [environment.step(Response(text, [], "stop", turn)) for turn, text in enumerate(texts)]


def test_each_value_is_followed_by_a_letter_and_the_next_operation():
    *replies, end = play(["8", "6", "7"])
    letters, operations = zip(*(step.messages[0]["content"].split() for step in replies), strict=True)
    assert set(letters) <= set(LETTERS[:4])
    assert operations == ("x7", "-9")
    assert (end.is_done, end.outcome) == (True, 1.0)


def test_a_wrong_step_gets_a_letter_of_the_other_half_and_later_steps_are_judged_from_it():
    # 9 is wrong; 9 x 7 = 63 makes 3 right, and 3 - 9 = -6 makes 4 right: as steps, but not as the answer.
    *replies, end = play(["9", "3", "4"])
    letters = [step.messages[0]["content"][0] for step in replies]
    assert letters[0] in LETTERS[4:] and letters[1] in LETTERS[:4]
    assert end.outcome == 0.0


@pytest.mark.parametrize("text", ["", "x", "12", "8 6", "-3"])
def test_anything_but_a_digit_ends_the_episode_without_success(text):
    (end,) = play([text])
    assert end.is_done and end.outcome == 0.0 and "is no digit" in end.reason


def test_remarks_are_determined_by_the_row_and_the_digits_and_are_wrong_as_often_as_told():
    assert [step.messages for step in play(["8", "6"], noise=0.5)] == [
        step.messages for step in play(["8", "6"], noise=0.5)
    ]
    letters = [remark([number], True, 0.1, "key") for number in range(4000)]
    assert sum(letter in LETTERS[4:] for letter in letters) == pytest.approx(400, abs=80)
    assert {letters.count(letter) > 700 for letter in LETTERS[:4]} == {True}


def test_operations_are_modulo_ten():
    assert [next_digit(*case) for case in ((5, "+9"), (2, "-7"), (4, "x9"))] == [4, 5, 6]
