"""The printed tables, cell by cell."""

from pathlib import Path

import pytest

from megatron_prime.config.tables.evaluation import EvaluationConfig
from megatron_prime.evaluation.accuracy import EvaluationReport, EvaluationResult
from megatron_prime.evaluation.evaluator import EvaluationSet
from megatron_prime.evaluation.prm_report import PRMReport
from megatron_prime.evaluation.tables import metrics_table, prm_table, summary_table
from megatron_prime.types import SamplingParams

MODEL = Path("models/policy")


def rows_of(table):
    return list(zip(*(column.cells for column in table.columns), strict=True))


def result_of(accuracy, intervals):
    return EvaluationResult(
        num_prompts=8,
        samples_per_prompt=2,
        accuracy=accuracy,
        pass_at_k={1: accuracy, 2: 0.75},
        num_correct=8,
        num_verifier_errors=1,
        truncated_fraction=0.125,
        mean_response_tokens=10.0,
        intervals=intervals,
    )


@pytest.fixture
def report():
    return EvaluationReport({"": result_of(0.5, {"accuracy": (0.25, 0.625)}), "amc": result_of(0.25, {})})


def sets_of(report):
    return [EvaluationSet(name, [], 2, SamplingParams(4, temperature=0.3), ()) for name in report.results]


def test_the_summary_has_a_row_per_prompt_set(report):
    table = summary_table(MODEL, EvaluationConfig(), sets_of(report), report)
    assert table.title == "models/policy, 95% intervals"
    assert rows_of(table) == [
        ("held-out", "8 x 2", "0.3", "50.0 [25.0, 62.5]", "75.0", "12.5", "1"),
        ("amc", "8 x 2", "0.3", "25.0", "75.0", "12.5", "1"),
    ]


def test_the_summary_of_several_benchmarks_ends_with_their_mean(report):
    report = EvaluationReport(report.results | {"aime24": result_of(0.75, {})})
    settings = EvaluationConfig(num_resamples=0)
    table = summary_table(MODEL, settings, sets_of(report), report)
    assert table.title == "models/policy"
    assert rows_of(table)[-1] == ("mean", "", "", "50.0", "", "", "")


def test_the_metrics_of_the_held_out_prompts(report):
    rows = rows_of(metrics_table(MODEL, EvaluationConfig(), report.results[""]))
    assert ("num_prompts", "8") in rows
    assert ("accuracy_ci_high", "0.6250") in rows


def test_the_metrics_of_a_prm():
    report = PRMReport({"toy/avg@2": 0.5, "toy/num_pairs": 3.0}, {"toy/avg@2": (0.25, 0.75)})
    assert rows_of(prm_table(MODEL, EvaluationConfig(), report)) == [
        ("toy/avg@2", "0.5000", "[0.250, 0.750]"),
        ("toy/num_pairs", "3", ""),
    ]
