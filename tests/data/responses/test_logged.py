"""Reading of rollout logs: the groups, what is left out, and what is refused."""

from pathlib import Path

import pytest

from megatron_prime.data.responses.logged import GroupReader, response_files
from megatron_prime.observability.rollout_log import FileInfo, step_path, write_rollouts
from megatron_prime.types import Turn
from tests.support.logged_rollouts import logged_response


def write(path: Path, *rows, tokenizer="mine") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_rollouts(path, FileInfo(1, model={"tokenizer": tokenizer}), rows)
    return path


def reader(vocab_size=300, max_tokens=6) -> GroupReader:
    return GroupReader("mine", vocab_size, max_tokens)


def test_groups_have_their_prompt_and_all_usable_responses(tmp_path):
    turns = {"policy_mask": [True, True, False], "turn_ends": [3], "turn_rewards": [0.0]}
    path = write(
        tmp_path / "a.parquet",
        logged_response(0, 0, outcome_reward=0.25),
        logged_response(0, 1, outcome_reward=None),
        logged_response(0, 2, num_tokens=4),
        logged_response(1, 0, outcome_reward=None),
        logged_response(2, 1, **turns),
    )
    read = reader()
    groups = list(read.groups(path))
    assert [prompt for prompt, _ in groups] == [[1, 2, 3]] * 2
    ((first,), (second,)) = (responses for _, responses in groups)
    assert (first.token_ids, first.outcome, first.turns) == ([0, 1, 2], 0.25, ())
    assert (second.outcome, second.turns) == (1.0, (Turn(2, 3),))
    assert read.dropped.lines(6) == [
        "left out: 2 responses without an outcome, as after verifier errors",
        "left out: 1 responses longer than 6 tokens with their prompt",
    ]


@pytest.mark.parametrize(
    ("changes", "vocab_size", "tokenizer", "message"),
    [
        ({}, 300, "other", "sampled with another tokenizer"),
        ({}, 3, "mine", r"group 0: token 3 is outside of the model's vocabulary of 3"),
        ({"prompt_token_ids": []}, 300, "mine", "group 0: its prompt or a response has no tokens"),
        ({"response_token_ids": [0, -3, 1]}, 300, "mine", "group 0: token -3 is outside"),
        ({"outcome_reward": 5.0}, 300, "mine", r"group 0: its outcome 5.0 is not in \[0, 1\]"),
        ({"outcome_reward": -float("inf")}, 300, "mine", r"group 0: its outcome -inf is not in"),
        (
            {"policy_mask": [True] * 3, "turn_ends": [2], "turn_rewards": [0.0]},
            300,
            "mine",
            "group 0: its turns end at token 2 of 3",
        ),
    ],
)
def test_responses_of_another_model_are_refused(tmp_path, changes, vocab_size, tokenizer, message):
    path = write(tmp_path / "a.parquet", logged_response(**changes), tokenizer=tokenizer)
    with pytest.raises(ValueError, match=message):
        list(reader(vocab_size).groups(path))


def test_a_log_is_named_by_its_run_its_folder_or_a_file(tmp_path):
    run, folder = tmp_path / "run", tmp_path / "responses"
    files = [write(step_path(run / "rollouts", step), logged_response()) for step in (1, 2)]
    single = write(folder / "evaluation.parquet", logged_response())
    assert response_files([run]) == response_files([run / "rollouts"]) == files
    assert response_files([folder, files[0]]) == [single, files[0]]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "no responses are named"),
        (["absent"], "absent does not exist"),
        (["empty"], "holds no rollout log"),
    ],
)
def test_a_path_without_a_log_is_refused(tmp_path, names, message):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=message):
        response_files([tmp_path / name for name in names])
