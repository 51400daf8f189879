"""Simulated processes wait for moments and for one another."""

import pytest

from benchmarks.overlap.clock import Clock, Event


def test_processes_wait_for_times_and_for_one_another():
    clock, seen = Clock(), []

    def first():
        yield 2.0
        seen.append(("first", clock.now))
        return "its result"

    def second(other: Event):
        yield other
        seen.append(("second", clock.now))
        yield 1.0
        yield other  # has happened: no time passes
        return other.value, clock.now

    one = clock.start(first())
    two = clock.start(second(one))
    assert clock.run(two) == ("its result", 3.0)
    assert seen == [("first", 2.0), ("second", 2.0)]


def test_what_happens_at_one_moment_happens_in_the_order_in_which_it_was_asked_for():
    clock, seen = Clock(), []
    for name in "abc":
        clock.call(1.0, lambda name=name: seen.append(name))
    end = Event()
    clock.call(1.0, end.happen)
    clock.run(end)
    assert seen == ["a", "b", "c"]


def test_a_deadlock_is_an_error():
    clock = Clock()

    def waits():
        yield Event()

    with pytest.raises(RuntimeError, match="for ever"):
        clock.run(clock.start(waits()))
