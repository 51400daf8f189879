"""The probe set of a run: solutions of a file, with an error planted into each correct one."""

import json

import pytest

from megatron_prime.config.run import PrimeConfig
from megatron_prime.evaluation import probe_set
from megatron_prime.evaluation.probe_set import read_probe
from tests.preflight.workspace import write_model
from tests.support.tokenizers import byte_tokenizer

ROWS = [
    {"problem": "6 + 2", "steps": ["6 + 2 = 8.", "So 8."], "label": -1},
    {"problem": "6 + 3", "steps": ["6 + 3 = 8.", "So 8."], "label": 0, "separator": " "},
    {"problem": "none", "steps": ["No number."], "label": -1},
]


@pytest.fixture
def configured(tmp_path, monkeypatch):
    tokenizer = byte_tokenizer()
    monkeypatch.setattr(probe_set, "load_tokenizer", lambda _: tokenizer)

    def make(rows=ROWS, longest=64, positions=64, **prm):
        write_model(tmp_path / "m", max_position_embeddings=positions)
        path = tmp_path / "probe.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return PrimeConfig.model_validate(
            {
                "run_dir": "runs/a",
                "model": {"path": tmp_path / "m"},
                "data": {"chat_template": "never", "instruction": ""},
                "rollout": {"max_prompt_tokens": 4, "max_response_tokens": 8},
                "trainer": {"num_steps": 3, "max_tokens_per_microbatch": longest},
                "prm": {"probe": path} | prm,
            }
        )

    return make


def test_solutions_are_tokenized_and_errors_planted_into_correct_ones(configured):
    found = read_probe(configured())
    decode = byte_tokenizer().decode
    assert [solution.label for solution in found.solutions] == [-1, 0, -1]
    assert [decode(list(row.response_ids)) for row in found.solutions] == [
        "6 + 2 = 8.\n\nSo 8.",
        "6 + 3 = 8. So 8.",
        "No number.",
    ]
    assert found.solutions[1].token_steps == (0,) * 11 + (1,) * 5
    ((original, copy),) = found.planted
    text, right = decode(list(copy.response_ids)), "6 + 2 = 8.\n\nSo 8."
    assert original == 0
    assert [old for old, new in zip(right, text, strict=True) if old != new] == ["8"]
    assert copy.label == (0 if text[8] != "8" else 1)
    assert found.summary() == "PRM probe: 3 solutions, 1 of them with an error, and 1 planted errors"


def test_without_a_file_or_a_prm_there_is_no_probe(configured):
    assert read_probe(configured(probe=None)) is None
    assert read_probe(configured(enabled=False)) is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"rows": []}, "has no rows"),
        ({"longest": 20}, "row 1: 22 tokens, more than the 20 that trainer.max_tokens_per_microbatch and"),
        ({"positions": 20}, "row 1: 22 tokens, more than the 20 that trainer.max_tokens_per_microbatch and"),
        ({"rows": [ROWS[0] | {"label": 5}]}, "row 1: 'label' is 5"),
        ({"rows": [ROWS[0] | {"separator": 3}]}, "row 1: 'separator' is 3: it must be a string"),
    ],
)
def test_a_file_that_cannot_be_a_probe_is_refused(configured, changes, reason):
    with pytest.raises(ValueError, match=reason):
        read_probe(configured(**changes))
