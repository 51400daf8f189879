import pytest

from megatron_prime.environments.builtin.guess_number import Environment
from megatron_prime.environments.protocol import Response, Row

PROMPT = [{"role": "user", "content": "Guess."}]


def play(row, *texts, **settings):
    game = Environment(**settings)
    messages = game.reset(row)
    steps = [game.step(Response(text, (), "stop", turn)) for turn, text in enumerate(texts)]
    return messages, [step.messages[0]["content"] if step.messages else step.outcome for step in steps]


GAMES = {
    "bisection": (("50", "no, 25", "37, not 38: 37"), {}, ["Too high.", "Too low.", 1.0]),
    "at once": (("37",), {}, [1.0]),
    "no number": (("high", "", "3.7e1x"), {}, ["That is no number."] * 2 + ["Too low."]),
    "too many digits": (("9" * 5000, "37"), {}, ["That is no number.", 1.0]),
    "negative": (("-37", "37"), {}, ["Too low.", 1.0]),
    "last guess": (("1", "2"), {"max_guesses": 2}, ["Too low.", 0.0]),
    "hints": (("1", "99", "37"), {"num_hints": 1}, ["Too low.", "Wrong.", 1.0]),
}


@pytest.mark.parametrize(("texts", "settings", "replies"), GAMES.values(), ids=GAMES)
def test_games(texts, settings, replies):
    messages, found = play(Row(PROMPT, "37"), *texts, **settings)
    assert messages == PROMPT and found == replies


def test_the_number_of_a_row_without_one_follows_from_it():
    def number(row):
        (found,) = [n for n in range(1, 9) if play(row, str(n), lowest=1, highest=8)[1] == [1.0]]
        return found

    rows = [Row(PROMPT, f"row {n}") for n in range(30)]
    assert [number(row) for row in rows] == [number(row) for row in rows]
    assert len({number(row) for row in rows}) > 4
    assert "from 1 to 8" in play(Row((), "x"), lowest=1, highest=8)[0][0]["content"]


@pytest.mark.parametrize("settings", [{"lowest": 5, "highest": 4}, {"max_guesses": 0}])
def test_a_game_that_cannot_be_played_is_refused(settings):
    with pytest.raises(ValueError, match="guess_number"):
        Environment(**settings)
