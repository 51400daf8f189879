"""Predicted memory is within 10 % of real CPU runs, for models and working memory separately."""

import pytest

from benchmarks.planning import plan_accuracy

CASES = [
    ("qwen2", "one", "none", "fp32"),
    ("qwen2", "one", "full", "fp32"),
    ("qwen3 tied", "tp2+sp", "none", "fp32"),
    ("qwen2", "pp2", "none", "fp32"),
    ("qwen3 moe", "ep2", "none", "fp32"),
]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return plan_accuracy.compare(CASES, tmp_path_factory.mktemp("accuracy"))


@pytest.mark.slow
@pytest.mark.parametrize("index", range(len(CASES)), ids=[" ".join(case) for case in CASES])
def test_the_plan_is_within_a_tenth(index, rows):
    _, predicted, measured = rows[index]
    assert measured["models"] > 10 << 20 and measured["working"] > 10 << 20
    for name, size in measured.items():
        assert predicted[name] == pytest.approx(size, rel=0.1), name
