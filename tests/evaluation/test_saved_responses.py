import json
import math

import pytest

from megatron_prime.evaluation.saved_responses import SavedResponse, read_responses, write_responses
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


def test_what_is_written_is_read(tmp_path):
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
        ({"prompt_ids": None}, "row 1: its token ids are no list"),
        ({"prompt_ids": [True]}, "row 1: its token ids are no list"),
        ({"responses": []}, "no list of responses"),
        ({"responses": [{"token_ids": [1]}]}, "no 'text'"),
        ({"responses": [{"text": "", "token_ids": []}]}, "its token ids are no list"),
        (
            {"responses": [{"text": "", "token_ids": [1], "outcome": 2}]},
            r"outcome 2 .* no number in \[0, 1\]",
        ),
    ],
)
def test_other_files_are_refused(tmp_path, changes, reason):
    path = tmp_path / "a.jsonl"
    good = {"prompt_ids": [1], "responses": [{"text": "x", "token_ids": [1], "outcome": 1}]}
    path.write_text(json.dumps(good | changes) + "\n")
    with pytest.raises(ValueError, match=reason):
        list(read_responses(path))
