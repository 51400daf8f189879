"""The environment of the learning benchmark judges each number given the one before it."""

import random

import pytest

from benchmarks.learning.chain import (
    LETTERS,
    OPERATIONS,
    Chain,
    apply,
    judged_numbers,
    mark,
    operation_of,
    operations_of,
    symbol,
)
from benchmarks.learning.tasks import TASKS, ChainTask
from megatron_prime.environments.protocol import Response, Row

TASK = ChainTask("test", num_steps=4)


def play(environment, row, numbers):
    """Return the steps of the environment after each of the words that a policy writes."""
    environment.reset(row)
    return [environment.step(Response(word, (), "stop", turn)) for turn, word in enumerate(numbers)]


def row_of(start, operations, answer):
    messages = ({"role": "user", "content": f"{start} {symbol(operations[0])}"},)
    return Row(messages, answer, metadata={OPERATIONS: " ".join(operations)})


@pytest.mark.parametrize("modulus", [10, 29])
def test_each_operation_is_a_bijection_and_has_a_character_of_its_own(modulus):
    operations = operations_of(modulus)
    assert [operation_of(symbol(each)) for each in operations] == operations
    for each in operations:
        assert sorted(apply(value, each, modulus) for value in range(modulus)) == list(range(modulus))


def test_a_wrong_number_is_judged_once_and_the_last_number_alone_is_verified():
    row = row_of(3, ["+4", "x3", "-1", "+0"], "0")
    steps = play(Chain(noise=0.0, rewards=True), row, ["7", "2", "1", "1"])  # 7 * 3 = 21 -> 1, but 2 - 1 = 1
    assert [step.reward for step in steps] == [1.0, 0.0, 1.0, 1.0]
    letters = [step.messages[0]["content"].split() for step in steps[:-1]]
    assert [letter in LETTERS[:4] for letter, _ in letters] == [True, False, True]
    assert [operation_of(each) for _, each in letters] == ["x3", "-1", "+0"]
    assert steps[-1].is_done and steps[-1].outcome == 0.0


def test_a_word_that_is_no_number_is_wrong_and_leaves_the_value():
    steps = play(Chain(marks=0, rewards=True), row_of(3, ["+4", "+1"], "4"), ["b", "4"])
    assert [step.reward for step in steps] == [0.0, 1.0]
    assert steps[0].messages[0]["content"] == symbol("+1") and steps[1].outcome == 1.0


def test_marks_mislead_as_often_as_the_noise_says_and_delayed_ones_judge_several_steps():
    rng = random.Random(0)
    cases = [([rng.randrange(10) for _ in range(4)], rng.random() < 0.5) for _ in range(4000)]
    letters = [mark(written, [is_right], 0.2, 1, "key") for written, is_right in cases]
    misleading = [
        (letter in LETTERS[:4]) != is_right for letter, (_, is_right) in zip(letters, cases, strict=True)
    ]
    assert sum(misleading) / len(misleading) == pytest.approx(0.2, abs=0.03)
    assert mark([1], [True], 0.0, 4, "key") in LETTERS
    assert mark([1] * 5, [True, False, True, True], 0.0, 4, "key") in LETTERS[4:]
    assert mark([1] * 9, [False] * 4 + [True] * 4, 0.0, 4, "key") in LETTERS[:4]


def test_the_numbers_of_a_text_are_judged_as_the_environment_judges_them():
    row = row_of(3, ["+4", "x3", "-1", "+0"], "0")
    numbers = ["7", "2", "b", "1"]
    steps = play(Chain(noise=0.0, rewards=True), row, numbers)
    words = ["3", symbol("+4")]
    places = []
    for number, step in zip(numbers, steps, strict=True):
        places.append(len(words))
        words += [number, *(step.messages[0]["content"].split() if step.messages else ())]
    assert list(judged_numbers(words, places, 10)) == [step.reward == 1.0 for step in steps]


@pytest.mark.parametrize("name", [name for name, task in TASKS.items() if isinstance(task, ChainTask)])
def test_demonstrations_are_what_a_policy_and_the_environment_write(name, monkeypatch):
    monkeypatch.setattr("benchmarks.learning.tasks.NUM_DEMONSTRATIONS", 20)
    monkeypatch.setattr("benchmarks.learning.tasks.NUM_PROBLEMS", 20)
    task = TASKS[name]
    rows = task.rows(seed=1)
    assert len({row["prompt"] + row[OPERATIONS] for row in rows["train"]}) == 20
    period = 3 if task.marks else 2
    for row in rows["sft"]:
        words = [*row["prompt"].split(), *row["response"].split()]
        assert len(words) == 2 + period * task.num_steps - (period - 1)
        places = range(2, len(words), period)
        assert len(list(judged_numbers(words, places, task.modulus))) == task.num_steps
