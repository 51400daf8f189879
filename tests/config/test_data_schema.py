import pytest
from pydantic import ValidationError

from megatron_prime.config.data_schema import DataConfig, EvaluationConfig, FilterConfig


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
