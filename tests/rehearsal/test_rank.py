"""A rehearsed rank calls the collectives and holds the memory of a real one."""

import pytest

from megatron_prime.planning.memory import plan_stage
from megatron_prime.rehearsal.comparison import differences
from megatron_prime.rehearsal.processes import rehearse
from megatron_prime.rehearsal.rank import rehearsable
from tests.rehearsal.conftest import RANKS
from tests.support.distributed_runner import run_distributed
from tests.support.rehearsed_runs import MIXTURE, NUM_RANKS, calls_by_ranks, real_rank, small_run

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


def test_experts_of_other_ranks_are_reached_by_all_to_all(tmp_path):
    run = small_run(
        tmp_path, 4, model=MIXTURE, parallel={"pipeline": 1, "expert": 2}, policy={"num_minibatches": 1}
    )
    reports = rehearse(run, [0, 1], jobs=2)
    assert [report.error for report in reports] == ["", ""]
    assert not any(counts.faults for report in reports for counts in report.counts.values())
    # Two ranks whose tokens choose unequal numbers of experts send unequal sizes.
    assert differences(reports) == []
    kinds = {
        call.kind
        for group, calls in reports[0].collectives.groups.items()
        if group.name == "EXPERT_MODEL_PARALLEL_GROUP"
        for call in calls.sequence
    }
    assert "all_to_all" in kinds
    planned = plan_stage(run, 0).phases["policy"]
    for kind in EXACT:
        held = sum(
            size for owner, size in reports[0].memory["policy"].at_peak.items() if owner == ("policy", kind)
        )
        assert held == pytest.approx(planned[f"policy {kind}"], rel=0.01), kind


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
