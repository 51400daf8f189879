"""The [environment] table: what it refuses."""

import pytest

from megatron_prime.config.tables.environment import EnvironmentConfig


def test_a_run_has_one_turn_by_default():
    assert not EnvironmentConfig().is_multi_turn
    assert EnvironmentConfig(name="guess_number").is_multi_turn


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "tools"}, "needs environment.tools"),
        ({"tools": ["python"]}, "leave them out"),
        ({"name": "tools", "tools": ["python", "python"]}, "names one twice"),
        ({"name": "my module"}, "neither a name nor an import path"),
        ({"max_turns": 0}, "greater than 0"),
    ],
)
def test_settings_that_do_not_fit_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        EnvironmentConfig(**fields)
