"""The viewer's benchmark opens a page and measures every action on it."""

import pytest

from benchmarks.viewer import measure, write_large_step
from megatron_prime.viewer.logged_step import LoggedStep


def test_the_step_has_as_many_tokens_as_it_says(tmp_path):
    step = LoggedStep(write_large_step(tmp_path, 2, 512))
    assert step.num_rows == 8
    assert step.index()["rows"]["tokens"] == [512] * 8


@pytest.mark.slow
def test_every_measure_is_positive(tmp_path):
    pytest.importorskip("playwright")
    result = measure(tmp_path, num_groups=6, tokens=256)
    assert len(result) == 14
    # The system counts CPU time in steps, of which so small a page may use none.
    assert all(value > 0 or ("CPU" in name and value == 0) for name, value in result.items()), result
