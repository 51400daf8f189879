"""Tables and JSON say what is wrong: too much memory, and errors with rank and phase."""

import copy
import json
from dataclasses import replace

import pytest

from megatron_prime.planning.gpus import GIB
from megatron_prime.planning.memory import plan_stage
from megatron_prime.rehearsal.report import (
    as_json,
    collectives_table,
    faults,
    memory_table,
    misfits,
    planned_bytes,
    waits_table,
    work_table,
)
from tests.support.rehearsed_runs import small_run


def test_a_phase_over_the_memory_of_the_gpu_is_named(small, reports, tmp_path):
    found = list(reports.values())
    assert misfits(small, found) == []
    run = small_run(tmp_path, platform={"device": "cuda"})
    least = (run.assumptions.overhead_gib * GIB + max(m.peak for m in reports[7].memory.values())) / GIB
    small_gpu = replace(run, gpu=replace(run.gpu, memory_gib=least - 1e-6))
    lines = misfits(small_gpu, [reports[7]])
    assert any(line.startswith("rank 7, phase ") for line in lines)
    assert misfits(replace(run, gpu=replace(run.gpu, memory_gib=least + 1)), found) == []


def test_faults_name_rank_and_phase(small, reports):
    changed = copy.deepcopy(list(reports.values()))
    changed[1].counts["prm"].faults["mixed"] += 2
    changed[2].error = "rank 2, phase policy: it failed"
    assert faults(small, changed) == [
        "rank 2, phase policy: it failed",
        "rank 1, phase prm: mixed (2 times)",
    ]


def test_json_holds_everything(small, reports):
    found = json.loads(json.dumps(as_json(small, list(reports.values()))))
    rank = found["ranks"][0]
    assert found["faults"] == []
    assert rank["phases"]["prm"]["peak_bytes"] == reports[0].memory["prm"].peak
    calls = next(each for each in rank["collectives"] if each["counts"])
    assert sum(times for *_, times in calls["sequence"]) == sum(
        count for count, _ in calls["counts"].values()
    )


def test_tables_have_a_row_per_phase(small, reports):
    table = memory_table(small, reports[0])
    assert table.row_count == len(reports[0].memory)
    assert work_table(reports[0]).row_count == len(reports[0].counts)
    assert collectives_table(reports[0]).row_count > 4
    assert waits_table(list(reports.values())).row_count > 4


@pytest.mark.parametrize("phase", ["logprobs", "prm", "policy", "build"])
def test_the_plan_leaves_the_engine_out(small, phase):
    plan = plan_stage(small, 0)
    engine = sum(size for name, size in plan.phases[phase].items() if name.startswith("engine"))
    assert planned_bytes(plan, phase) == plan.total(phase) - engine
    assert planned_bytes(plan, "advantage") is None
