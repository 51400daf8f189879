"""A report on a PRM whose step scores are given; tests/cli/prm/test_evaluation.py compares real scores with HF's."""

import json
from pathlib import Path

import pytest

from megatron_prime.config.run import PrimeConfig
from megatron_prime.evaluation.confidence import bootstrap_interval
from megatron_prime.evaluation.prm_inputs import PRMInputs
from megatron_prime.evaluation.prm_report import PRMReport, judge_prm
from tests.support.event_files import EventFiles
from tests.support.hf_shapes import SIZES
from tests.support.tokenizers import byte_tokenizer

SAMPLES = Path(__file__).parents[2] / "examples" / "data"


def score_by_length(texts):
    """Score each step by the length of its response, so that a longer response has the higher score."""
    return [[float(len(text.response_ids))] * text.num_steps for text in texts]


@pytest.fixture
def judged(tmp_path):
    """(configuration, report) of one file of saved responses and one of pairs."""
    byte_tokenizer().save_pretrained(tmp_path / "model")
    config_json = SIZES | {"model_type": "qwen3", "vocab_size": 300}
    (tmp_path / "model/config.json").write_text(json.dumps(config_json))
    encode = byte_tokenizer().encode
    problems = [
        {
            "prompt_ids": [1],
            "responses": [
                {"text": text, "token_ids": encode(text), "outcome": outcome} for text, outcome in responses
            ],
        }
        for responses in ([("longer", 1.0), ("short", 0.0)], [("one", 1.0), ("three", 0.0)])
    ]
    (tmp_path / "toy.jsonl").write_text("".join(json.dumps(problem) + "\n" for problem in problems))
    config = PrimeConfig.model_validate(
        {
            "run_dir": tmp_path / "run",
            "model": {"path": tmp_path / "model"},
            "rollout": {"max_prompt_tokens": 64, "max_response_tokens": 64},
            "trainer": {"num_steps": 1, "max_tokens_per_microbatch": 128},
            "prm_evaluation": {"responses": [tmp_path / "toy.jsonl"], "pairs": [SAMPLES / "pairs.jsonl"]},
        }
    )
    return config, judge_prm(config, PRMInputs(config), score_by_length)


def test_metrics_follow_from_the_scores(judged):
    config, report = judged
    assert report.metrics["toy/best_last@2"] == 0.5
    assert (report.metrics["toy/pair_accuracy"], report.metrics["toy/num_pairs"]) == (0.5, 2.0)
    settings = config.evaluation
    assert report.intervals["toy/best_last@2"] == bootstrap_interval(
        [1.0, 0.0], settings.confidence, settings.num_resamples, config.seed
    )
    assert "toy/num_pairs" not in report.intervals
    assert [record["set"] for record in report.step_scores] == ["responses/toy"] * 4 + ["pairs/pairs"] * 4
    assert report.step_scores[0]["steps"] == ["longer"]


def test_the_files_hold_metrics_intervals_and_step_scores(tmp_path):
    report = PRMReport(
        {"a": 0.5, "b": float("nan")}, {"a": (0.25, 0.75)}, [{"set": "s", "step_scores": [1.0]}]
    )
    report.write(tmp_path / "run", {"model": "prm"})
    (written,) = json.loads((tmp_path / "run" / "prm_evaluation.json").read_text())
    assert written["model"] == "prm"
    assert written["metrics"] == {"a": 0.5, "b": None, "a_ci_low": 0.25, "a_ci_high": 0.75}
    assert json.loads((tmp_path / "run" / "step_scores.jsonl").read_text()) == report.step_scores[0]
    events = EventFiles(tmp_path / "run" / "prm_tensorboard")
    assert "prm_eval/a_ci_low" in events.tags()
