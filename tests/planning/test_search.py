"""Checks that recommended layouts fit and are sorted, and that a run that cannot fit is explained with numbers."""

import pytest

from megatron_prime.config.run import PrimeConfig
from megatron_prime.planning.memory import plan_memory
from megatron_prime.planning.search import (
    _candidates,
    _with_moved_layers,
    best_layouts,
    find_num_processes,
    misfit_message,
)
from tests.support.planned_runs import make_run

WIDE = {"engine": "sglang", "sglang": {"tensor": 8, "num_servers": 1, "mem_fraction": 0.6, "colocated": True}}
"""Rollout settings with servers large enough for a 70B model."""


def test_the_recommended_layouts_fit_and_come_fastest_first(tmp_path):
    run = make_run(tmp_path, "Llama-3-70B", 64, rollout=WIDE)
    assert not plan_memory(run).fits
    best = best_layouts(run)
    assert len(best) == 5
    seconds = [candidate.times.seconds for candidate in best]
    assert seconds == sorted(seconds)
    for candidate in best:
        assert plan_memory(candidate.run).fits
        assert candidate.run.layout.num_ranks == 64
        PrimeConfig.model_validate(candidate.run.config.model_dump())


def test_stages_of_unequal_size_are_searched(tmp_path):
    """28 layers in eight stages; and layers moved off a stage that needs slightly too much memory."""
    candidates = list(_candidates(make_run(tmp_path, "Qwen2.5-7B", 8)))
    assert any(candidate.layout.pp == 8 for candidate in candidates)
    moved = [_with_moved_layers(candidate) for candidate in candidates if not plan_memory(candidate).fits]
    made_to_fit = [(run, memory) for run, memory in moved if memory.fits]
    assert made_to_fit
    for run, memory in made_to_fit:
        layers = run.config.parallel.layers_per_stage
        assert layers is not None and sum(layers) == 28 and min(layers) >= 1
        assert plan_memory(run) == memory


def test_more_memory_allows_a_faster_layout(tmp_path):
    small, large = (best_layouts(make_run(tmp_path, "Qwen2.5-32B", 32, gpu)) for gpu in ("H100-80G", "H200"))
    assert large[0].times.seconds < small[0].times.seconds


def test_the_search_divides_experts(tmp_path):
    best = best_layouts(make_run(tmp_path, "Qwen3-30B-A3B", 32), max_results=1)
    assert best[0].run.layout.ep > 1
    assert any(line.startswith("parallel.expert=") for line in best[0].overrides())


def test_a_misfit_is_explained_by_its_largest_parts(tmp_path):
    run = make_run(tmp_path, "Llama-3-70B", 8, "A100-40G", rollout=WIDE)
    assert best_layouts(run) == []
    text = misfit_message(run, plan_memory(run))
    assert "of the 39.4 GiB of a A100-40G" in text and "policy optimizer" in text
    number = find_num_processes(run)
    assert number is not None and number > 8
    bigger = make_run(tmp_path, "Llama-3-70B", number, "A100-40G", rollout=WIDE)
    assert best_layouts(bigger, max_results=1)


@pytest.fixture(scope="module")
def for_64_gpus(tmp_path_factory):
    return best_layouts(make_run(tmp_path_factory.mktemp("search"), "Qwen2.5-32B", 64))


@pytest.mark.parametrize("tensor", [1, 8])
def test_overrides_name_the_layout(tensor, for_64_gpus):
    for candidate in for_64_gpus:
        text = " ".join(candidate.overrides())
        assert (f"parallel.tensor={tensor}" in text) == (candidate.run.layout.tp == tensor and tensor > 1)
