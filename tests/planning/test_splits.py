"""Splits of GPUs between servers and training use all GPUs and fit; the fastest is found without trying all of them."""

import pytest

from megatron_prime.planning import splits
from megatron_prime.planning.memory import plan_memory
from megatron_prime.planning.search import best_layouts
from megatron_prime.planning.splits import best_splits, dedicated, shared
from megatron_prime.planning.times import plan_times
from tests.support.planned_runs import make_run

BESIDE = {
    "engine": "sglang",
    "sglang": {"tensor": 4, "urls": ["http://a:1", "http://b:1"], "colocated": False},
}


def test_each_split_uses_all_gpus_and_the_fastest_comes_first(tmp_path):
    run = make_run(tmp_path, processes=24, rollout=BESIDE)
    assert run.num_gpus == 32
    found = best_splits(run, max_results=9)
    seconds = [split.candidate.times.seconds for split in found]
    assert seconds == sorted(seconds)
    assert {split.candidate.run.num_servers for split in found if not split.candidate.run.is_colocated} <= {
        2,
        4,
        6,
    }
    for split in found:
        planned = split.candidate.run
        assert split.num_gpus == 32 and plan_memory(planned).fits
        assert planned.config.rollout.samples_ahead != planned.is_colocated
        assert plan_times(planned).seconds == split.candidate.times.seconds
    assert sum(split.candidate.run.is_colocated for split in found) == 1


@pytest.mark.slow
def test_giving_up_early_does_not_miss_the_fastest(tmp_path, monkeypatch):
    run = make_run(tmp_path, processes=40, rollout=BESIDE)
    every = [shared(run), *(dedicated(run, number) for number in range(2, 12, 2))]
    best = min(each.times.seconds for planned in every for each in best_layouts(planned, max_results=1))
    monkeypatch.setattr(splits, "GIVE_UP_AFTER", 1)
    found = best_splits(run, max_results=9)
    assert found[0].candidate.times.seconds == pytest.approx(best)
    assert len(found) < len(every)


def test_large_jobs_try_some_splits_only(tmp_path, monkeypatch):
    monkeypatch.setattr(splits, "MAX_SPLITS", 2)
    monkeypatch.setattr(splits, "best_layouts", lambda run, max_results: [])
    tried = []
    monkeypatch.setattr(splits, "dedicated", lambda run, number: tried.append(number) or run)
    assert best_splits(make_run(tmp_path, processes=56, rollout=BESIDE)) == []
    assert tried == [8]


def test_the_servers_of_a_single_node_are_split_one_by_one(tmp_path):
    one = {
        "engine": "sglang",
        "sglang": {"tensor": 1, "num_servers": 2, "gpu_ids": [6, 7], "colocated": False},
    }
    found = best_splits(make_run(tmp_path, processes=6, rollout=one, gpu="H200"), max_results=9)
    beside = [split.candidate.run for split in found if not split.candidate.run.is_colocated]
    assert beside
    assert all(planned.num_processes + planned.num_servers == 8 for planned in beside)


def test_the_embedded_engine_has_no_split(tmp_path):
    assert best_splits(make_run(tmp_path, rollout={"engine": "local"})) == []
