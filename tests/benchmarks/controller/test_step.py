"""The step runs as the trainer's own does, in a process that can be no other rank."""

import json
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest

from benchmarks.controller.__main__ import page
from benchmarks.controller.report import STAGES
from benchmarks.controller.step import GROUP_SIZE, PHASES, lengths, measure, sampled_groups


def test_lengths_have_a_heavy_tail():
    drawn = lengths(20_000, 8192, np.random.default_rng(0))
    assert np.median(drawn) == pytest.approx(2048, rel=0.05)
    assert (drawn == 8192).mean() == pytest.approx(0.031, abs=0.01) and drawn.min() >= 1


def test_groups_have_right_and_wrong_responses():
    groups = list(sampled_groups(2 * GROUP_SIZE, 40, is_full=True))
    assert [len(group) for group in groups] == [GROUP_SIZE] * 2
    assert {len(rollout.response_ids) for group in groups for rollout in group} == {40}
    assert all({rollout.outcome_reward for rollout in group} == {0.0, 1.0} for group in groups)


def test_a_step_is_measured(tmp_path):
    with ProcessPoolExecutor(1, mp_context=get_context("forkserver")) as process:
        found = process.submit(measure, 4 * GROUP_SIZE, 256, False, True, tmp_path).result()
    assert json.loads(json.dumps(found))["phases"].keys() == set(PHASES)
    assert found["stages"].keys() == {"engine", "pickled", *STAGES} and found["peak"] > found["rollouts"]
    assert sum(phase["count"] for phase in found["phases"].values()) > 50
    text = page({"after 64 False": found}, "", 256)
    assert text.count("\n| after | 64 |") == 2
