"""Tests of the rank order (as Megatron documents it), of the random streams, and of closing a topology."""

import pytest
import torch

from tests.parallel.parallel_cases import GRIDS, RESOURCE_LAYOUTS, SPARE_FILES
from tests.parallel.parallel_cases import NUM_RANKS as WORLD_SIZE


@pytest.fixture(scope="module")
def reports(four_processes):
    return [report["topologies"] for report in four_processes]


@pytest.mark.parametrize(("tensor", "pipeline"), GRIDS)
def test_coordinates_and_groups(tensor, pipeline, reports):
    data = WORLD_SIZE // (tensor * pipeline)
    place_of = {
        t + tensor * (d + data * p): (t, d, p)
        for p in range(pipeline)
        for d in range(data)
        for t in range(tensor)
    }
    for rank, by_layout in enumerate(reports):
        report = by_layout[tensor, pipeline]
        assert (report["rank"], report["world"]) == (rank, WORLD_SIZE)
        assert report["sizes"] == (tensor, data, pipeline)
        assert report["place"] == place_of[rank]
        assert report["ends"] == (place_of[rank][2] == 0, place_of[rank][2] == pipeline - 1)
        assert report["sequence_parallel"] == (tensor > 1)
        for axis, name in enumerate(("tensor", "data", "pipeline")):
            neighbours = [
                other
                for other in range(WORLD_SIZE)
                if all(place_of[other][rest] == place_of[rank][rest] for rest in {0, 1, 2} - {axis})
            ]
            assert report["groups"][name] == neighbours, name
        assert report["megatron_tp"] == report["groups"]["tensor"]
        assert report["last_stage_rank"] == report["groups"]["pipeline"][-1]
        assert report["sum"] == data


def test_processes_that_the_layout_does_not_divide_are_refused(reports):
    for report in reports:
        assert "4 processes are not a multiple" in report["refused"]


def test_parallel_random_streams_follow_the_seed_and_differ_between_tensor_ranks(reports):
    first, again, other = reports[0]["streams"]
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, reports[1]["streams"][0])
    assert torch.equal(first, reports[2]["streams"][0]), "data replicas draw alike"


def test_a_thread_with_a_host_group_of_its_own_needs_no_order_with_the_main_thread(four_processes):
    for rank in four_processes:
        assert rank["threads"] == {
            who: [[f"{who} {other}"] for other in range(WORLD_SIZE)] for who in ("thread", "main")
        }


def test_a_closed_topology_leaves_no_threads_files_or_processes(four_processes):
    for rank in four_processes:
        counts = rank["resources"]
        first = counts[: len(RESOURCE_LAYOUTS)]
        for count in counts:
            assert count["groups"] == 1, "only the job's own group stays"
            assert count["closed"]["threads"] < count["built"]["threads"] - 10, (
                "about 17 groups, of 2 threads each"
            )
        for count in counts[len(RESOURCE_LAYOUTS) :]:
            for name, number in count["closed"].items():
                allowed = max(before["closed"][name] for before in first)
                assert number <= allowed + (SPARE_FILES if name == "files" else 0), (name, counts)
