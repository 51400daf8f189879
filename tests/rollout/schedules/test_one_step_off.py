"""The schedule of one-step-off sampling is one table, whatever the timing, the failures and the attempts of a run."""

import contextlib
import subprocess
import sys
import threading
from dataclasses import dataclass, field, replace

import pytest

from megatron_prime.rollout.collector import NoBatch
from megatron_prime.rollout.engine import EngineError
from megatron_prime.rollout.schedules.one_step_off import OneStepOff
from megatron_prime.rollout.verification import VerifierAwayError
from tests.support import deadlines
from tests.support.forked_commands import FORKED
from tests.support.toy_runs import ROOT

NUM_STEPS = 4


@dataclass
class Run:
    """Engine, prompt stream and collector in one; batch n takes n + 1 prompts, so that every position is another."""

    journal: list[str] = field(default_factory=list)
    version: int = -1
    position: int = 0
    state: int = 0
    failures: dict[int, Exception] = field(default_factory=dict)
    """Step -> the error that its next collection ends with."""
    held_up: dict[int, threading.Event] = field(default_factory=dict)
    """Step -> an event that its collection waits for."""
    observe = None
    last_records = ()
    is_training: bool = False

    def state_dict(self):
        return {"at": self.position, "state": self.state}

    def load_state_dict(self, state):
        self.position, self.state = state["at"], state["state"]

    @contextlib.contextmanager
    def while_training(self):
        self.is_training = True
        try:
            yield
        finally:
            self.is_training = False

    def collect(self, step_index):
        if step_index in self.held_up:
            assert self.held_up[step_index].wait(deadlines.seconds(30))
        begin, self.position = self.position, self.position + step_index + 1
        self.state += 1
        if step_index in self.failures:
            raise self.failures.pop(step_index)
        where = " ahead" if self.is_training else ""
        self.journal.append(f"batch {step_index} by version {self.version} from {begin}{where}")
        self.last_records = [(begin, 0.5, "kept")]
        if self.observe is not None:
            self.observe(step_index, [begin])
        return NoBatch({"version": float(self.version)}, f"batch {step_index}")


def source_of(run: Run, in_background: bool, **changes) -> OneStepOff:
    return OneStepOff(run, run, run, num_steps=NUM_STEPS, in_background=in_background, **changes)


def train(run: Run, source: OneStepOff, first: int = 0, last: int = NUM_STEPS) -> None:
    """Do what a trainer does in some steps."""
    for step_index in range(first, last):
        run.version = step_index
        batch = source.collect(step_index)
        source.collect_ahead(step_index)
        run.journal.append(f"train {batch.reason} at version {step_index}")
        if step_index + 1 in run.held_up:
            run.held_up[step_index + 1].set()
        source.finish()


SCHEDULE = [
    "batch 0 by version 0 from 0",
    "batch 1 by version 0 from 1 ahead",
    "train batch 0 at version 0",
    "batch 2 by version 1 from 3 ahead",
    "train batch 1 at version 1",
    "batch 3 by version 2 from 6 ahead",
    "train batch 2 at version 2",
    "train batch 3 at version 3",
]


def test_the_embedded_engine_samples_before_the_update():
    run = Run()
    train(run, source_of(run, in_background=False))
    assert run.journal == SCHEDULE


def test_in_the_background_training_does_not_wait_and_the_weights_are_the_same():
    run = Run(held_up={step_index: threading.Event() for step_index in range(1, NUM_STEPS)})
    train(run, source_of(run, in_background=True))
    # Each batch is held up here until the training beside it has ended.
    order = (0, 2, 1, 4, 3, 6, 5, 7)
    assert run.journal == [SCHEDULE[place] for place in order]


@pytest.mark.parametrize("in_background", [False, True])
@pytest.mark.parametrize("stop", range(1, NUM_STEPS))
def test_a_resumed_run_has_the_schedule_of_an_unbroken_one(stop, in_background):
    run = Run()
    source = source_of(run, in_background)
    train(run, source, last=stop)
    saved, held = run.state_dict(), source.held
    assert held is not None and held.step_index == stop
    resumed = Run(run.journal)
    resumed.load_state_dict(saved)
    again = source_of(resumed, in_background)
    again.resume(again.state_dict(), held)
    train(resumed, again, first=stop)
    assert again.held is None, "the last step samples nothing ahead"
    # A thread may note its batch before or after the training beside it.
    assert sorted(resumed.journal) == sorted(SCHEDULE)


def test_an_evaluation_between_two_steps_changes_nothing():
    run = Run()
    source = source_of(run, in_background=True)
    train(run, source, last=1)
    run.version = 1  # The evaluation after step 0 is of the weights that step 1 begins with.
    train(run, source, first=1)
    assert sorted(run.journal) == sorted(SCHEDULE)


def test_a_batch_that_a_dead_fleet_lost_is_sampled_again_with_the_new_weights_and_the_same_prompts():
    run, warnings = Run(failures={2: EngineError("no server is left")}), []
    source = source_of(run, in_background=True, warn=warnings.append)
    stats = []
    for step_index in range(NUM_STEPS):
        run.version = step_index
        stats.append(source.collect(step_index).stats)
        source.collect_ahead(step_index)
        source.finish()
    assert [line for line in run.journal if line.startswith("batch")] == [
        "batch 0 by version 0 from 0",
        "batch 1 by version 0 from 1 ahead",
        "batch 2 by version 2 from 3",
        "batch 3 by version 2 from 6 ahead",
    ]
    assert [stat["num_lost_batches"] for stat in stats] == [0, 0, 1, 0]
    assert len(warnings) == 1 and "batch of step 3 was lost" in warnings[0]


@pytest.mark.parametrize("in_background", [False, True])
@pytest.mark.parametrize("error", [VerifierAwayError("away"), RuntimeError("too few"), ValueError("bad")])
def test_another_error_is_raised_by_the_step_that_it_concerns(error, in_background):
    run = Run(failures={2: error})
    source = source_of(run, in_background)
    train(run, source, last=2)
    assert source.held is None
    assert run.state_dict() == {"at": 3, "state": 2}, "a checkpoint takes the prompts again"
    run.version = 2
    with pytest.raises(type(error), match=str(error)):
        source.collect(2)
    # A run that goes on samples the batch with the weights that it has by now.
    train(run, source, first=2)
    assert "batch 2 by version 2 from 3" in run.journal
    assert "batch 3 by version 2 from 6 ahead" in run.journal


ENDING = """
import sys, threading, time
from megatron_prime.rollout.schedules.one_step_off import OneStepOff, leave_if_sampling
from tests.rollout.schedules.test_one_step_off import Run, source_of
run = Run(held_up={1: threading.Event()})
source = source_of(run, in_background=True)
source.collect(0)
leave_if_sampling(3)
source.collect_ahead(0)
print("sampling", flush=True)
leave_if_sampling(69)
"""


def test_a_rank_that_fails_while_it_samples_ahead_ends_at_once_with_its_exit_code():
    ended = subprocess.run(
        [sys.executable, *FORKED, "-c", ENDING], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert (ended.returncode, ended.stdout) == (69, "sampling\n"), ended.stderr


def test_groups_and_records_are_those_of_the_batch_that_is_trained():
    run, seen = Run(), []
    run.observe = lambda step_index, groups: seen.append((step_index, list(groups)))
    source = source_of(run, in_background=False)
    run.version = 0
    for step_index, begin in enumerate((0, 1, 3, 6)):
        source.collect(step_index)
        source.collect_ahead(step_index)
        assert source.last_records == [(begin, 0.5, "kept")]
        assert seen == [(step_index, [begin])]
        seen.clear()


def test_a_batch_that_was_sampled_with_other_settings_is_sampled_again():
    run, warnings = Run(), []
    source = source_of(run, in_background=False, settings={"a": 1, "b": 2})
    train(run, source, last=1)
    held = source.held
    assert held is not None
    same = source_of(Run(), in_background=False, settings={"a": 1, "b": 2})
    same.resume({"at": 3, "state": 2}, replace(held))
    assert same.held == held
    other = Run(position=3, state=2)
    changed = source_of(other, in_background=False, settings={"a": 1, "b": 3}, warn=warnings.append)
    changed.resume({"at": 3, "state": 2}, held)
    assert changed.held is None and other.state_dict() == {"at": 1, "state": 1}
    assert len(warnings) == 1 and "step 2" in warnings[0] and "(b)" in warnings[0]
