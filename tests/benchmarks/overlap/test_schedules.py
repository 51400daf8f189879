"""Schedules are compared to closed forms where lengths make them simple, and to each other."""

import pytest

from benchmarks.overlap.clock import Clock
from benchmarks.overlap.fleet import Fleet, Group
from benchmarks.overlap.lengths import Lengths, Workload
from benchmarks.overlap.schedules import Site, Trainer, continuous, one_step_off, rounds, streaming
from benchmarks.overlap.servers import DecodeSpeed, Server, Verifiers

SCHEDULES = {
    "rounds": rounds,
    "streaming": streaming,
    "one step off": one_step_off,
    "wait": lambda site, num_steps: continuous(site, num_steps, 4, "wait"),
    "continue": lambda site, num_steps: continuous(site, num_steps, 4, "continue"),
}


def run(schedule, draw, num_steps=8, prompts=4, places=64, train_s=0.0, push_s=0.0, speed=None, group_size=2):
    clock = Clock()
    fleet = Fleet(clock, [Server(clock, speed or DecodeSpeed(1.0), places)], Verifiers(clock, 10**6))
    site = Site(clock, fleet, Trainer(train_s, 0.0, push_s), draw, prompts, group_size)
    clock.run(clock.start(schedule(site, num_steps)))
    return site


def step_times(site):
    return [later.end - earlier.end for earlier, later in zip(site.steps, site.steps[1:], strict=False)]


def steady(length=10, verify_s=0.0, is_kept=lambda index: True):
    return lambda index, version: Group(0, (length, length), (verify_s, verify_s), is_kept(index))


def test_a_step_in_turn_takes_sampling_verification_training_and_the_sync_together():
    for schedule in (rounds, streaming):
        site = run(schedule, steady(10, 3.0), train_s=5.0, push_s=2.0)
        assert step_times(site) == pytest.approx([20.0] * 7), "10 + 3 + 5 + 2"


@pytest.mark.parametrize("train_s", [4.0, 25.0])
def test_one_step_off_takes_the_longer_of_sampling_and_training(train_s):
    site = run(one_step_off, steady(10, 3.0), train_s=train_s, push_s=2.0)
    *times, last = step_times(site)
    assert times[1:] == pytest.approx([max(13.0, train_s) + 2.0] * 5)
    assert last <= times[-1], "nothing is collected behind the last batch"
    assert [step.staleness for step in site.steps] == [(0,) * 4] + [(1,) * 4] * 7


def test_a_second_round_waits_for_the_first_and_streaming_replaces_at_once():
    """Prompts 0 and 1 of every eight are rejected, and are the shortest of their batch."""

    def draw(index, version):
        is_kept = index % 6 >= 2
        return Group(0, (10, 10) if is_kept else (2, 2), (0.0, 0.0), is_kept)

    in_rounds, streamed = run(rounds, draw), run(streaming, draw)
    # 4 prompts of which 2 are kept, then 3 or 4 for the missing 2.
    assert step_times(in_rounds)[1] == pytest.approx(20.0)
    # The rate of rejections is learned; two rejected groups are replaced after 2 s at the latest.
    assert max(step_times(streamed)) <= 12.0
    assert streamed.position == 8 * 6, "6 prompts for 4 kept groups, in order"


def test_the_longest_of_many_lengths_decides_a_round():
    work = Workload(Lengths(mean=50.0, limit=1000), 2, 0, keep_rate=1.0, verify_s=0.0)
    site = run(rounds, work.draw, num_steps=3)
    longest = [max(max(work.draw(4 * step + i, step).lengths) for i in range(4)) for step in range(3)]
    assert [step.end for step in site.steps] == pytest.approx([sum(longest[: i + 1]) for i in range(3)])


def test_continuous_sampling_reaches_the_rate_of_the_servers_and_of_the_trainer():
    """With 4 places of 1 token/s, 2 * 4 responses of 10 tokens take 20 s, whatever the trainer does in less."""
    for partial in ("wait", "continue"):
        slow_servers = run(SCHEDULES[partial], steady(), places=4, train_s=5.0, num_steps=20)
        assert step_times(slow_servers)[-1] == pytest.approx(20.0 if partial == "continue" else 25.0, abs=5.0)
    slow_trainer = run(SCHEDULES["continue"], steady(), train_s=40.0, num_steps=20)
    assert step_times(slow_trainer)[8:] == pytest.approx([40.0] * 11)
    assert max(max(step.staleness) for step in slow_trainer.steps) == 4, "the trainer is behind, and bounded"


@pytest.mark.parametrize("name", SCHEDULES)
def test_batches_are_full_staleness_is_bounded_and_tokens_are_conserved(name):
    work = Workload(Lengths(mean=60.0, limit=400), 2, 8, keep_rate=0.5, verify_s=4.0)
    site = run(SCHEDULES[name], work.draw, places=16, train_s=30.0, push_s=1.0, num_steps=12)
    bound = {"rounds": 0, "streaming": 0, "one step off": 1}.get(name, 4)
    assert all(0 <= each <= bound for step in site.steps for each in step.staleness)
    if name != "rounds":  # which stop after four
        assert [len(step.staleness) for step in site.steps] == [4] * 12
    trained = sum(step.num_tokens for step in site.steps)
    assert trained < site.fleet.num_tokens < 6 * trained
    busy = site.fleet.busy_s
    assert busy <= site.clock.now + 1e-6


def test_streaming_takes_the_prompts_that_one_at_a_time_would_take():
    """The number of prompts until the fourth kept group does not depend on what ends first."""
    work = Workload(Lengths(mean=60.0, limit=400), 2, 8, keep_rate=0.5, verify_s=4.0)
    position, expected = 0, []
    for step in range(5):
        kept = 0
        while kept < 4:
            kept += work.draw(position, step).is_kept
            position += 1
        expected.append(position)
    positions = []
    for num_steps in range(1, 6):
        positions.append(run(streaming, work.draw, num_steps=num_steps).position)
    assert positions == expected
