"""Checks that text, tables and JSON agree with the plan."""

import io
import json

import pytest
from rich.console import Console

from megatron_prime.planning.gpus import GIB
from megatron_prime.planning.memory import plan_memory
from megatron_prime.planning.report import (
    as_json,
    fit_summary,
    layouts_table,
    memory_table,
    splits_table,
    summary_lines,
    time_table,
)
from megatron_prime.planning.search import best_layouts
from megatron_prime.planning.splits import best_splits
from megatron_prime.planning.times import plan_times
from tests.support.planned_runs import make_run


def test_text_tables_and_json_agree(tmp_path):
    run = make_run(tmp_path, processes=16, parallel={"tensor": 4, "sequence_parallel": True})
    memory, times, best = plan_memory(run), plan_times(run), best_layouts(run, max_results=2)
    splits = best_splits(run)
    found = json.loads(json.dumps(as_json(run, memory, times, best, splits)))
    assert found["layout"] == {"tp": 4, "pp": 1, "vpp": 1, "cp": 1, "ep": 1, "etp": 1, "dp": 4}
    assert found["parameters"]["policy"]["total"] == 7_615_616_512
    assert sum(found["memory_gib"]["policy"].values()) * GIB == pytest.approx(memory.total("policy"))
    assert found["seconds"] == pytest.approx(sum(phase["seconds"] for phase in found["phases"].values()))
    assert found["seconds_overlapped"] is None
    assert [each["seconds"] for each in found["splits"]] == sorted(
        each["seconds"] for each in found["splits"]
    )
    assert {each["max_staleness"] for each in found["splits"]} == {0, 1}
    console = Console(file=io.StringIO(), width=400)
    for table in (memory_table(memory), time_table(times), layouts_table(best), splits_table(splits)):
        console.print(table)
    text = console.file.getvalue()
    assert f"{memory.total('policy') / GIB:.2f}" in text
    assert f"{times.seconds:,.1f}" in text
    assert " ".join(best[0].overrides()) in text
    assert "splits of 16 GPUs that fit" in text and " ".join(splits[0].candidate.overrides()) in text
    lines = "\n".join(summary_lines(run, memory, times))
    assert "7,615,616,512 parameters" in lines
    assert "56 KiB per token" in lines
    assert "at the same time needs servers with GPUs of their own" in lines
    beside = {"engine": "sglang", "sglang": {"urls": ["http://a:1"], "tensor": 4, "colocated": False}}
    other = make_run(tmp_path, processes=4, rollout=beside)
    lines = "\n".join(summary_lines(other, plan_memory(other), plan_times(other)))
    assert "at the same time (rollout.max_staleness = 1)" in lines and "waits for training" in lines
    further = make_run(tmp_path, processes=4, rollout=beside | {"max_staleness": 4, "partial": "continue"})
    lines = "\n".join(summary_lines(further, plan_memory(further), plan_times(further)))
    assert "at the same time (rollout.max_staleness = 4, partial = 'continue')" in lines
    assert fit_summary(run, memory).startswith(("fits: ", "does not fit: "))
