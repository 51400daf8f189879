"""Tests that results of the last pipeline stages reach every rank exactly."""

import pytest
import torch

from tests.parallel import collectives_worker
from tests.parallel.parallel_cases import NUM_RANKS, SHARING_LAYOUTS
from tests.support.distributed_runner import run_distributed


@pytest.fixture(scope="module")
def shared(four_processes):
    return [report["shared"] for report in four_processes]


@pytest.mark.parametrize("layout", SHARING_LAYOUTS)
def test_results_reach_every_rank(layout, shared):
    reports = [by_layout[layout] for by_layout in shared]
    data_size = reports[0]["data_size"]
    expected_loss = sum(torch.tensor(0.1 * (rank + 1)).item() for rank in range(data_size))
    for report in reports:
        assert torch.equal(report["values"], 0.1 * torch.arange(24.0).view(8, 3)), "exact, not merely close"
        assert report["flags"].tolist() == [data_size * (data_size + 1) / 2] * 2
        assert report["named"] == {"loss": pytest.approx(expected_loss, rel=1e-15), "first": 5.0}
        assert report["lists"] == [[("rank", rank)] * rank for rank in range(NUM_RANKS)]
        assert report["object"] == {"from": 0}


def test_named_sums_are_the_same_bits_everywhere(shared):
    for layout in SHARING_LAYOUTS:
        assert len({report[layout]["named"]["loss"] for report in shared}) == 1


def test_objects_and_votes_do_not_use_the_job_s_own_group_where_that_is_no_gloo_group():
    reports = run_distributed(collectives_worker.on_the_host, 2)
    for report in reports:
        assert report["lists"] == [[], [1]]
        assert report["object"] == {"from": 0}
        assert report["votes"] == [False, True, True]
        assert report["without NCCL"] is None
