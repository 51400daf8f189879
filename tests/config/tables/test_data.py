import pytest
from pydantic import ValidationError

from megatron_prime.config.tables.data import DataConfig
from megatron_prime.config.tables.evaluation import EvaluationConfig
from megatron_prime.config.tables.filter import FilterConfig
from megatron_prime.config.tables.prm_evaluation import PRMEvaluationConfig


def test_the_defaults_are_the_paper_s_filter_and_plain_columns():
    assert (FilterConfig().accuracy_min, FilterConfig().accuracy_max) == (0.2, 0.8)
    assert (DataConfig().prompt_field, DataConfig().answer_field, DataConfig().ability_field) == (
        "prompt",
        "answer",
        None,
    )
    assert EvaluationConfig().samples_per_prompt == 1


def test_an_empty_band_is_refused():
    with pytest.raises(ValidationError, match="exceeds accuracy_max"):
        FilterConfig(accuracy_min=0.9)


def test_benchmarks_are_known_by_name_or_by_format():
    path = {"path": "a.jsonl"}
    EvaluationConfig(benchmarks={"aime24": path, "mine": path | {"format": "math500"}})
    with pytest.raises(ValidationError, match=r"benchmarks.mine needs a format, .* none of aime24, amc"):
        EvaluationConfig(benchmarks={"mine": path})


def test_a_threshold_needs_a_split_or_a_number():
    files = {"math": "a.jsonl"}
    with pytest.raises(ValidationError, match="no split 'gsm8k' to choose the threshold on"):
        PRMEvaluationConfig(processbench=files)
    PRMEvaluationConfig(processbench=files, threshold=0.4)
    PRMEvaluationConfig(processbench=files, tune_on="math")


def test_files_whose_results_would_have_one_name_are_refused():
    PRMEvaluationConfig(responses=["a/x.jsonl", "a/y.jsonl"], pairs=["b/x.jsonl"])
    with pytest.raises(ValidationError, match="pairs has several files named x: rename them"):
        PRMEvaluationConfig(pairs=["a/x.jsonl", "b/x.csv"])


def test_a_buffer_belongs_to_the_penalty():
    FilterConfig(overlong="penalize", overlong_buffer_tokens=5)
    with pytest.raises(ValidationError, match="belongs to overlong = 'penalize', but it is 'mask'"):
        FilterConfig(overlong="mask", overlong_buffer_tokens=5)
