import json
import math
from dataclasses import replace

import pytest

from megatron_prime.evaluation.accuracy import EvaluationResult
from megatron_prime.evaluation.saved_responses import (
    SavedResponse,
    read_responses,
    write_response_files,
    write_responses,
)
from megatron_prime.observability.rollout_log import FileInfo, RolloutFile, write_rollouts
from megatron_prime.types import FinishReason, Prompt, Rollout, Turn
from tests.support.logged_rollouts import logged_response


class Words:
    def decode(self, token_ids, *, skip_special_tokens):
        return " ".join(map(str, token_ids)) + ("" if skip_special_tokens else " raw")


def rollouts():
    return [
        Rollout(
            Prompt(index, (index, 4), "7", "src", "math"),
            sample,
            (1, sample),
            (-1.0, -2.0),
            FinishReason.STOP,
            3,
            outcome,
        )
        for index, outcomes in ((5, (1.0, math.nan)), (9, (0.0, 0.5)))
        for sample, outcome in enumerate(outcomes)
    ]


def test_written_responses_are_read_back(tmp_path):
    path = tmp_path / "a.parquet"
    write_responses(path, FileInfo(0, "eval"), rollouts(), 2, Words())
    first, second = read_responses(path)
    assert (first.prompt_ids, second.prompt_ids) == ((5, 4), (9, 4))
    assert second.responses == (
        SavedResponse("1 0", (1, 0), 0.0),
        SavedResponse("1 1", (1, 1), 0.5),
    )
    assert math.isnan(first.responses[1].outcome)
    assert second.where.endswith("a.parquet, group 1")
    with RolloutFile(path) as file:
        record = next(iter(file.rows()))
        assert (file.info.policy_version, file.info.num_groups) == (3, 2)
    assert record["prompt"] == "5 4 raw"
    assert (record["ground_truth"], record["source"], record["ability"]) == ("7", "src", "math")
    assert (record["finish_reason"], record["filter"]) == ("stop", None)


def test_turns_are_read_back(tmp_path):
    path, turns = tmp_path / "a.parquet", (Turn(1, 1), Turn(2, 2, 0.5))
    several = [replace(each, turns=turns) for each in rollouts()]
    write_responses(path, FileInfo(0, "eval"), several, 2, Words())
    assert {response.turns for problem in read_responses(path) for response in problem.responses} == {turns}


def test_files_of_json_lines_are_read(tmp_path):
    path = tmp_path / "a.jsonl"
    responses = [{"text": "x", "token_ids": [1, 2], "outcome": None}]
    path.write_text(json.dumps({"prompt_ids": [5, 4], "responses": responses}) + "\n")
    (problem,) = read_responses(path)
    assert problem.prompt_ids == (5, 4)
    assert problem.where.endswith("a.jsonl, row 1")
    assert problem.responses[0].token_ids == (1, 2)
    assert math.isnan(problem.responses[0].outcome)


def test_a_logged_response_without_tokens_is_refused(tmp_path):
    path = tmp_path / "a.parquet"
    write_rollouts(path, FileInfo(3), [logged_response(), logged_response(group=1, num_tokens=0)])
    with pytest.raises(ValueError, match=r"a\.parquet, group 1: its prompt or a response has no tokens"):
        list(read_responses(path))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"prompt_ids": None}, "row 1: its token ids are not a list"),
        ({"prompt_ids": [True]}, "row 1: its token ids are not a list"),
        ({"prompt_ids": [-1]}, "row 1: its token ids are not a list"),
        ({"responses": []}, "not a list of responses"),
        ({"responses": [{"token_ids": [1]}]}, "no 'text'"),
        ({"responses": [{"text": "", "token_ids": []}]}, "its token ids are not a list"),
        (
            {"responses": [{"text": "", "token_ids": [1], "outcome": 2}]},
            r"outcome 2 .* not a number in \[0, 1\]",
        ),
    ],
)
def test_malformed_rows_are_refused(tmp_path, changes, reason):
    path = tmp_path / "a.jsonl"
    good = {"prompt_ids": [1], "responses": [{"text": "x", "token_ids": [1], "outcome": 1}]}
    path.write_text(json.dumps(good | changes) + "\n")
    with pytest.raises(ValueError, match=reason):
        list(read_responses(path))


def test_every_prompt_set_has_a_file(tmp_path):
    result = EvaluationResult(2, 2, 0.5, {1: 0.5, 2: 1.0}, 1, 1, 0.0, 2.0, rollouts=tuple(rollouts()))
    paths = write_response_files(
        tmp_path / "responses", {"": result, "amc": result}, Words(), {"weights": "x"}
    )
    assert [path.name for path in paths] == ["evaluation.parquet", "amc.parquet"]
    with RolloutFile(paths[1]) as file:
        assert (file.info.kind, file.info.name, file.info.model) == ("eval", "amc", {"weights": "x"})
    assert [len(list(read_responses(path))) for path in paths] == [2, 2]
