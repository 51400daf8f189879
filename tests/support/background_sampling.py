"""An estimator whose import makes the embedded engine sample ahead in a thread, as it is done with servers.

The product samples in a thread only where servers do the work. The embedded engine computes the same numbers in either
case, so that a run with threads can be compared bit for bit to one without: see `overlap_worker.IN_BACKGROUND`.
"""

from typing import Any

from megatron_prime.algorithm.estimators.rloo import Estimator
from megatron_prime.rollout.schedules.one_step_off import OneStepOff

__all__ = ["Estimator"]

_collect_ahead = OneStepOff.collect_ahead


def _in_a_thread(source: Any, step_index: int) -> None:
    source._in_background = True
    _collect_ahead(source, step_index)
    print(f"batch {step_index + 2} is sampled in {'no' if source._thread is None else 'a'} thread")


OneStepOff.collect_ahead = _in_a_thread
