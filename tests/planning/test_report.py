"""The tables and the JSON say the same as the plan."""

import io
import json

import pytest
from rich.console import Console

from megatron_prime.planning.gpus import GIB
from megatron_prime.planning.memory import plan_memory
from megatron_prime.planning.report import (
    as_json,
    layouts_table,
    memory_table,
    summary_lines,
    time_table,
    verdict,
)
from megatron_prime.planning.search import best_layouts
from megatron_prime.planning.times import plan_times
from tests.support.plan_jobs import make_job


def test_words_tables_and_json_agree(tmp_path):
    job = make_job(tmp_path, processes=16, parallel={"tensor": 4, "sequence_parallel": True})
    memory, times, best = plan_memory(job), plan_times(job), best_layouts(job, most=2)
    found = json.loads(json.dumps(as_json(job, memory, times, best)))
    assert found["layout"] == {"tp": 4, "pp": 1, "vpp": 1, "cp": 1, "ep": 1, "etp": 1, "dp": 4}
    assert found["parameters"]["policy"]["total"] == 7_615_616_512
    assert sum(found["memory_gib"]["policy"].values()) * GIB == pytest.approx(memory.total("policy"))
    assert found["seconds"] == pytest.approx(sum(phase["seconds"] for phase in found["phases"].values()))
    console = Console(file=io.StringIO(), width=400)
    for table in (memory_table(memory), time_table(times), layouts_table(best)):
        console.print(table)
    text = console.file.getvalue()
    assert f"{memory.total('policy') / GIB:.2f}" in text
    assert f"{times.seconds:,.1f}" in text
    assert " ".join(best[0].overrides()) in text
    lines = "\n".join(summary_lines(job, memory, times))
    assert "7,615,616,512 parameters" in lines
    assert "56 KiB a token" in lines
    assert verdict(job, memory).startswith(("fits: ", "does not fit: "))
