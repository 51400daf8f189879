import pytest
from pydantic import ValidationError

from megatron_prime.config.tables.observability.logging import LoggingConfig


def test_by_default_a_run_logs_to_tensorboard_alone():
    assert LoggingConfig().backends == ("tensorboard",)
    assert LoggingConfig(backends=[]).backends == ()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"backends": ["tensorbord"]}, "tensorboard"),
        ({"backends": ["wandb", "wandb"]}, "more than once"),
        ({"project": " "}, "project is empty"),
        ({"details_every": -1}, "greater than or equal to 0"),
    ],
)
def test_unknown_and_repeated_backends_are_refused(values, message):
    with pytest.raises(ValidationError, match=message):
        LoggingConfig(**values)
