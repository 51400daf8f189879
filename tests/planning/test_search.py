"""What is recommended fits and cannot be beaten by what was tried; what cannot fit is refused with numbers."""

import pytest

from megatron_prime.config.run import PrimeConfig
from megatron_prime.planning.memory import plan_memory
from megatron_prime.planning.search import best_layouts, fewest_processes, refusal
from tests.support.plan_jobs import make_job

WIDE = {"engine": "sglang", "sglang": {"tensor": 8, "num_servers": 1, "mem_fraction": 0.6, "colocated": True}}
"""Servers that a 70B model fits on."""


def test_the_recommended_layouts_fit_and_come_fastest_first(tmp_path):
    job = make_job(tmp_path, "Llama-3-70B", 64, rollout=WIDE)
    assert not plan_memory(job).fits
    best = best_layouts(job)
    assert len(best) == 5
    seconds = [candidate.times.seconds for candidate in best]
    assert seconds == sorted(seconds)
    for candidate in best:
        assert plan_memory(candidate.job).fits
        assert candidate.job.layout.num_ranks == 64
        PrimeConfig.model_validate(candidate.job.config.model_dump())


def test_more_memory_allows_a_faster_layout(tmp_path):
    small, large = (best_layouts(make_job(tmp_path, "Qwen2.5-32B", 32, gpu)) for gpu in ("H100-80G", "H200"))
    assert large[0].times.seconds < small[0].times.seconds


def test_experts_are_divided(tmp_path):
    best = best_layouts(make_job(tmp_path, "Qwen3-30B-A3B", 32), most=1)
    assert best[0].job.layout.ep > 1
    assert any(line.startswith("parallel.expert=") for line in best[0].overrides())


def test_what_cannot_fit_is_refused_with_its_largest_parts(tmp_path):
    job = make_job(tmp_path, "Llama-3-70B", 8, "A100-40G", rollout=WIDE)
    assert best_layouts(job) == []
    text = refusal(job, plan_memory(job))
    assert "of the 39.4 GiB of a A100-40G" in text and "policy optimizer" in text
    number = fewest_processes(job)
    assert number is not None and number > 8
    bigger = make_job(tmp_path, "Llama-3-70B", number, "A100-40G", rollout=WIDE)
    assert best_layouts(bigger, most=1)


@pytest.mark.parametrize("tensor", [1, 8])
def test_overrides_name_the_layout(tensor, tmp_path):
    for candidate in best_layouts(make_job(tmp_path, "Qwen2.5-32B", 64)):
        text = " ".join(candidate.overrides())
        assert (f"parallel.tensor={tensor}" in text) == (candidate.job.layout.tp == tensor and tensor > 1)
