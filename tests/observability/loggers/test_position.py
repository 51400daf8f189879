import math

import pytest

from megatron_prime.observability.loggers.position import Position, finite_values


def test_a_run_continues_only_where_nothing_is_computed_again(tmp_path):
    position = Position(tmp_path, "x")
    assert not position.continues(0)
    position.begin("id", -1)
    for step in (0, 1, 2):
        position.sending(step)
    again = Position(tmp_path, "x")
    assert (again.run_id, again.last_step) == ("id", 2)
    assert again.continues(3) and again.continues(5)
    assert not again.continues(2)
    assert not Position(tmp_path, "y").continues(3)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"run_id": "a"}', '{"run_id": "a", "last_step": "x"}'])
def test_a_damaged_file_begins_anew(tmp_path, content):
    (tmp_path / "loggers").mkdir()
    (tmp_path / "loggers" / "x.json").write_text(content)
    assert not Position(tmp_path, "x").continues(10**6)


def test_values_that_are_not_finite_are_left_out():
    assert finite_values({"step": 3, "a/b": 1.0, "a/c": math.nan, "a/d": None}) == {"a/b": 1.0}
