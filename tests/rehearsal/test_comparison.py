"""A rank that skips or changes a collective is found, wherever it is."""

import copy

import pytest

from megatron_prime.rehearsal.collectives import Collective
from megatron_prime.rehearsal.comparison import differences


def test_ranks_of_the_trainer_agree(reports):
    assert differences(list(reports.values())) == []


@pytest.mark.parametrize("rank", [1, 2, 7])
def test_a_skipped_collective_is_found(reports, rank):
    changed = copy.deepcopy(reports)
    group, calls = next(
        (group, calls)
        for group, calls in changed[rank].collectives.groups.items()
        if sum(other in group.ranks for other in changed) > 1
        and any(not call.is_message for call in calls.sequence)
    )
    number = next(index for index, call in enumerate(calls.sequence) if not call.is_message)
    del calls.sequence[number]
    found = differences(list(changed.values()))
    assert found
    assert all(f"rank {rank}" in line and group.name in line for line in found)


def test_a_message_that_the_other_end_does_not_expect_is_found(reports):
    changed = copy.deepcopy(reports)
    calls = next(
        calls
        for group, calls in changed[0].collectives.groups.items()
        if any(call.kind == "send" and call.peer == 4 for call in calls.sequence)
    )
    calls.sequence.append(Collective("send", 12345, 4))
    (line,) = differences([changed[0], changed[4]])
    assert "12,345 bytes on rank 0 and missing on rank 4" in line


def test_ranks_that_failed_are_left_out(reports):
    changed = copy.deepcopy(reports)
    changed[0].error = "rank 0 failed"
    changed[0].collectives.groups.clear()
    assert differences(list(changed.values())) == []
