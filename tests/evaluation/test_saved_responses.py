import json
import math

import pytest

from megatron_prime.evaluation.accuracy import EvaluationResult
from megatron_prime.evaluation.saved_responses import (
    SavedResponse,
    read_responses,
    write_response_files,
    write_responses,
)
from megatron_prime.types import FinishReason, Prompt, Rollout


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
    path = tmp_path / "a.jsonl"
    write_responses(path, rollouts(), 2, Words())
    first, second = read_responses(path)
    assert (first.prompt_ids, second.prompt_ids) == ((5, 4), (9, 4))
    assert second.responses == (
        SavedResponse("1 0", (1, 0), 0.0),
        SavedResponse("1 1", (1, 1), 0.5),
    )
    assert math.isnan(first.responses[1].outcome)
    assert second.where.endswith("a.jsonl, row 2")
    record = json.loads(path.read_text().splitlines()[0])
    assert record["prompt"] == "5 4 raw"
    assert (record["answer"], record["source"], record["ability"]) == ("7", "src", "math")


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
    paths = write_response_files(tmp_path / "responses", {"": result, "amc": result}, Words())
    assert [path.name for path in paths] == ["evaluation.jsonl", "amc.jsonl"]
    assert [len(list(read_responses(path))) for path in paths] == [2, 2]
