"""A rehearsed rank calls the collectives and holds the memory of a real one."""

import pytest

from megatron_prime.rehearsal.processes import rehearse
from megatron_prime.rehearsal.rank import rehearsable
from tests.rehearsal.conftest import RANKS
from tests.support.distributed_runner import run_distributed
from tests.support.rehearsed_runs import NUM_RANKS, calls_by_ranks, real_rank, small_run

EXACT = ("weights", "gradients", "optimizer")


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    return run_distributed(real_rank, NUM_RANKS, tmp_path_factory.mktemp("real"))


@pytest.mark.slow
def test_the_collectives_are_those_of_a_real_run(reports, real):
    for rank in RANKS:
        calls, _ = real[rank]
        assert calls_by_ranks(reports[rank].collectives) == calls
        assert sum(len(sequence) for sequences in calls.values() for sequence in sequences) > 100


@pytest.mark.slow
def test_the_memory_is_that_of_a_real_run(reports, real):
    for rank in RANKS:
        _, phases = real[rank]
        for phase in ("logprobs", "prm", "policy"):
            mine, theirs = reports[rank].memory[phase], phases[phase]
            for owner in {*mine.at_peak, *theirs.at_peak}:
                if owner.kind in EXACT:
                    assert mine.at_peak[owner] == theirs.at_peak[owner], (rank, phase, owner)
            assert _of_models(mine) == pytest.approx(_of_models(theirs), rel=0.03), (rank, phase)


def _of_models(memory):
    """Return the bytes of models at the peak: on a CPU, what belongs to none includes copies of offloaded parts."""
    return sum(size for owner, size in memory.at_peak.items() if owner.kind != "other")


def test_a_step_passes_without_faults(reports):
    report = reports[7]
    assert report.where == {"tensor": 1, "pipeline": 1, "context": 0, "data": 1, "expert": 0}
    assert not any(counts.faults for counts in report.counts.values())
    assert report.counts["policy"].flops > report.counts["advantage"].flops
    assert report.host_bytes > 0


def test_a_layout_that_does_not_divide_the_model_is_an_error_with_rank_and_phase(tmp_path):
    run = small_run(tmp_path, parallel={"tensor": 8, "pipeline": 1})
    (report,) = rehearse(run, [3])
    assert report.error.startswith("rank 3, phase build: ValueError: ")


def test_what_needs_transformer_engine_is_noted(tmp_path):
    run = small_run(tmp_path, platform={"device": "cuda", "dtype": "bf16"}, fp8={"policy": "tensorwise"})
    config, notes = rehearsable(run.config)
    assert config.fp8.recipe_of("policy") == "none"
    assert len(notes) == 2
    assert rehearsable(small_run(tmp_path).config)[1] == []
