"""Deadlines of tests, scaled for slow and busy machines by one environment variable."""

import os
import time
from collections.abc import Callable
from typing import TypeVar

Value = TypeVar("Value")

SCALE = float(os.environ.get("MEGATRON_PRIME_TEST_DEADLINE_SCALE", "1"))
"""Factor on every deadline in the tests; set it above 1 where a machine is slow or shared."""


def seconds(deadline_s: float) -> float:
    """Return a deadline in seconds, scaled for this machine."""
    return deadline_s * SCALE


def wait_until(condition: Callable[[], Value], deadline_s: float, message: str = "") -> Value:
    """Poll `condition` until its result is true and return that result.

    Raises:
        AssertionError: The deadline, scaled for this machine, has passed.
    """
    end = time.monotonic() + seconds(deadline_s)
    while True:
        # Read before the condition: a process that was not scheduled for long still gets a last look.
        is_late = time.monotonic() > end
        value = condition()
        if value:
            return value
        assert not is_late, message or f"not true within {seconds(deadline_s):.0f} s: {condition}"
        time.sleep(0.05)
