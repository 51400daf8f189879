"""Ranks are chosen so that each kind of group can be compared, and a rank that dies is reported."""

import pytest

from megatron_prime.rehearsal.processes import chosen_ranks
from megatron_prime.resharding.layouts import TrainingLayout

LAYOUT = TrainingLayout(tp=8, pp=4, cp=1, dp=4)


def test_stages_have_neighbours_at_both_ends():
    assert chosen_ranks("stages", LAYOUT) == [0, 1, 8, 32, 64, 96, 97, 104]


def test_ranks_are_sorted():
    assert chosen_ranks("127, 0,127", LAYOUT) == [0, 127]


@pytest.mark.parametrize(
    ("text", "message"), [("128", "ranks 0 to 127"), ("-1", "ranks 0 to 127"), ("all", "stages")]
)
def test_other_ranks_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        chosen_ranks(text, LAYOUT)


def test_reports_come_in_order(reports):
    assert list(reports) == [0, 1, 2, 4, 7]
    assert [report.error for report in reports.values()] == [""] * 5
