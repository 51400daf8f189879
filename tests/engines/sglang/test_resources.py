"""The resources of a node are those of its ranks together, however Slurm has divided them."""

import os
import queue
import threading

import pytest

from megatron_prime.engines.sglang.resources import (
    NodeResources,
    RankResources,
    gather_resources,
    visible_gpus,
)
from megatron_prime.rollout.ranks import Ranks


def node(*gpus: str, cores=((0,),)) -> NodeResources:
    """Return the resources of ranks with these values of CUDA_VISIBLE_DEVICES; None where it is not set."""
    ranks = [
        RankResources(
            local, visible_gpus({"CUDA_VISIBLE_DEVICES": value}), frozenset(cores[local % len(cores)])
        )
        for local, value in enumerate(gpus)
    ]
    return NodeResources.of(ranks)


@pytest.mark.parametrize(
    ("values", "names"),
    [
        pytest.param(["0,1,2,3"] * 4, "0123", id="all see all"),
        pytest.param(["4,5,6,7"] * 4, "4567", id="the second half of a node"),
        pytest.param(["0", "1", "2", "3"], "0123", id="one per task"),
        pytest.param(["3", "1", "0", "2"], "3102", id="one per task, by distance"),
        pytest.param(["0,1", "0,1", "2,3", "2,3"], "0123", id="two per pair of tasks"),
        pytest.param(["0,1", "2,3"], "0312", id="two per task: the second rank uses its second"),
        pytest.param(["0,1,2,3"] * 2, "0123", id="two ranks, and two GPUs for servers"),
        pytest.param(["0"] * 4, "0", id="each confined to its own"),
        pytest.param([""] * 4, "", id="not named"),
        pytest.param(["0", ""], "", id="named by one rank only"),
    ],
)
def test_gpus_of_a_node_begin_with_those_of_its_ranks(values, names):
    assert "".join(node(*values).gpus) == names


def test_names_may_be_any():
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "GPU-8a, MIG-0,"}) == ("GPU-8a", "MIG-0")
    assert visible_gpus({}) == ()


@pytest.mark.parametrize(
    ("values", "num_needed", "is_refused"),
    [
        (["0"] * 4, 4, True),
        (["0"] * 4, 1, False),
        (["0", "1", "2", "3"], 4, False),
        (["0,1,2,3"] * 4, 4, False),
        ([""] * 4, 4, False),
        (["1"], 4, False),
    ],
)
def test_servers_are_refused_where_no_rank_can_reach_the_gpus_of_the_others(values, num_needed, is_refused):
    if not is_refused:
        node(*values).require(num_needed)
        return
    with pytest.raises(ValueError, match=r"need 4 GPUs, but each rank is confined to its own.*--gpu-bind"):
        node(*values).require(num_needed)


def test_cores_of_a_node_are_those_of_all_its_ranks():
    assert node("", "", cores=((0, 1), (8, 9))).cores == (0, 1, 8, 9)


def test_each_rank_learns_of_its_own_node():
    """Three ranks, the first two of which are on one node."""
    values = [(0, "1"), (1, "0"), (0, "5")]
    shared = [RankResources(local, (gpu,), frozenset(os.sched_getaffinity(0))) for local, gpu in values]
    barrier, results = threading.Barrier(3), [queue.Queue() for _ in range(3)]

    def rank(number):
        def gather(items):
            assert len(items) == 1
            barrier.wait(20)
            return [[own] for own in shared]

        results[number].put(gather_resources(Ranks(number, 3, gather)))

    for number in range(3):
        threading.Thread(target=rank, args=(number,), daemon=True).start()
    for result in results:
        assert [found.gpus for found in result.get(timeout=30)] == [("1", "0"), ("1", "0"), ("5",)]
