"""The speeds of the simulation follow from the planner, and its rows from the schedules."""

import pytest

from benchmarks.overlap.lengths import Workload
from benchmarks.overlap.schedules import one_step_off, streaming
from benchmarks.overlap.seventy import (
    SPLITS,
    decode_speed,
    num_places,
    planned,
    short,
    simulate,
    table,
    trainer,
)
from megatron_prime.planning.memory import plan_memory
from megatron_prime.planning.times import plan_times

WORK = Workload()


def test_speeds_are_those_of_the_data_sheet_and_the_planner():
    speed = decode_speed()
    weights, bandwidth = 70_553_706_496 * 2, 8 * 3352e9 * 0.6
    assert speed.base_s == pytest.approx(weights / bandwidth)
    assert speed.per_context_token_s == pytest.approx(80 * 8 * 128 * 2 * 2 / bandwidth)
    run = planned(64, 7000.0, WORK, is_colocated=False)
    phases = plan_times(run).phases
    found = trainer(run)
    assert found.per_token_s * run.tokens == pytest.approx(
        sum(phases[name].seconds for name in ("logprobs", "prm", "policy"))
    )
    assert found.push_s == phases["weight_sync"].seconds


def test_every_split_fits_into_memory():
    for gpus, is_colocated in [(128, True), *((split, False) for split in SPLITS)]:
        for work, tokens in ((WORK, 7000.0), (short(WORK), 1000.0)):
            assert plan_memory(planned(gpus, tokens, work, is_colocated)).fits
    assert 32 <= num_places(WORK, 0.5) < num_places(WORK, 0.8) <= 256


def test_overlap_is_faster_and_the_table_says_by_how_much():
    work = short(WORK)
    shared = simulate("streaming", streaming, 128, work, 1000.0, 8)
    split = simulate("one step off", one_step_off, 96, work, 1000.0, 8)
    assert split.step_s < shared.step_s and split.staleness == (1.0, 1)
    assert split.trainer_idle == pytest.approx(1 - split.train_s / split.step_s)
    assert 0 < split.wasted < 0.6 and 0 <= split.servers_idle < 1
    lines = table([shared, split]).splitlines()
    assert "128, shared" in lines[2] and lines[2].endswith("| 1.00 |")
    assert "96 + 32" in lines[3] and lines[3].endswith(f"| {shared.step_s / split.step_s:.2f} |")
