"""The status of a run in two lines: steps, rest of the time and phase; then accuracy with its trend, and speed."""

import math
import time
from collections import deque
from collections.abc import Mapping, Sequence

from megatron_prime.observability import heartbeat
from megatron_prime.observability.activity import ENGINE, QUEUE, VERIFIER, Worker, workers

TREND_STEPS = 5
"""The trend is the mean over so many last steps, minus that over as many before."""
TIMED_STEPS = 20
"""The remaining time follows from the mean time of so many last steps."""
OUTER_PHASES = ("start", "step")
"""Phases between the phases of a step; a step of supervised fine-tuning has no others."""
WIDE = 110
"""Columns from which on a curve of the last steps is shown."""
_CURVE = "▁▂▃▄▅▆▇█"
_CURVE_STEPS = 30


class RunStatus:
    """The state of a run as its last step left it.

    Args:
        name: of the run's kind.
        num_steps: of the whole run.
        done: steps done by earlier attempts.
        labels: metrics to show, with their labels; the first has a trend.
    """

    def __init__(self, name: str, num_steps: int, done: int, labels: Mapping[str, str]) -> None:
        self._name = name
        self._num_steps = num_steps
        self._done = done
        self._labels = labels
        self._metrics: Mapping[str, float] = {}
        self._values: deque[float] = deque(maxlen=max(_CURVE_STEPS, 2 * TREND_STEPS))
        self._last = time.monotonic()
        self._seconds: deque[float] = deque(maxlen=TIMED_STEPS)
        self._phase, self._phase_since = "", self._last

    def step_done(self, metrics: Mapping[str, float]) -> None:
        """Take the metrics of the step that has just ended."""
        now = time.monotonic()
        self._seconds.append(now - self._last)
        self._last = now
        self._done += 1
        self._metrics = dict(metrics)
        value = metrics.get(next(iter(self._labels)), math.nan)
        if math.isfinite(value):
            self._values.append(value)

    @property
    def remaining_s(self) -> float | None:
        """Seconds until the last step at the present speed, with evaluations and checkpoints; None before a step."""
        if not self._seconds:
            return None
        return (self._num_steps - self._done) * sum(self._seconds) / len(self._seconds)

    def lines(self, columns: int) -> list[str]:
        """Return the two lines for a terminal of so many columns."""
        rest = "" if self.remaining_s is None else f"  {duration(self.remaining_s)} left"
        phase = self._phase_text()
        head = f"{self._name}  step {self._done}/{self._num_steps}"
        room = columns - len(head) - len(rest) - len(phase) - 2
        bar = f"  {progress_bar(self._done, self._num_steps, min(room, 60))}" if room >= 8 else ""
        return [f"{head}{bar}{rest}{phase}", self._metrics_line(columns)]

    def _metrics_line(self, columns: int) -> str:
        if not self._metrics:
            return "the first step of this attempt is under way"
        parts = []
        for number, (name, label) in enumerate(self._labels.items()):
            value = self._metrics.get(name)
            if value is not None:
                trend = self._trend(columns) if number == 0 else ""
                parts.append(f"{label} {_shown(value)}{trend}")
        tokens = self._metrics.get("throughput/response_tokens_per_s")
        if tokens is not None:
            parts.append(f"{_shown(tokens)} tokens/s")
        parts.append(f"{_shown(self._seconds[-1])} s/step")
        return "  ".join(parts)

    def _trend(self, columns: int) -> str:
        """Return an arrow with the change, and on wide terminals a curve."""
        values = [*self._values]
        count = min(TREND_STEPS, len(values) // 2)
        if count == 0:
            return ""
        change = (sum(values[-count:]) - sum(values[-2 * count : -count])) / count
        arrow = "→" if abs(change) < 5e-4 else "↑" if change > 0 else "↓"
        return f" {arrow} {change:+.3f}" + (f" {curve(values)}" if columns >= WIDE else "")

    def _phase_text(self) -> str:
        now, phase = time.monotonic(), heartbeat.current().phase
        if phase != self._phase:
            self._phase, self._phase_since = phase, now
        if phase in OUTER_PHASES and self._metrics:
            return ""
        work = work_text()
        return f"  {phase.replace('_', ' ')} {duration(now - self._phase_since)}" + (
            f", {work}" if work else ""
        )


def work_text() -> str:
    """Return how many responses of the present batch are sampled and verified; "" without such work."""
    # With servers, the queue counts all responses; an embedded engine counts its own.
    sampled = _progress(workers(QUEUE)) or _progress(workers(ENGINE))
    verified = _progress(workers(VERIFIER))
    return ", ".join(
        f"{label} {done}/{total}"
        for label, found in (("sampled", sampled), ("verified", verified))
        for done, total in ([found] if found else [])
    )


def _progress(found: Sequence[Worker]) -> tuple[int, int] | None:
    """Return the completed and all items of the workers that have something to do."""
    active = [each for each in found if each.pending or each.running]
    done = sum(each.completed for each in active)
    return (done, done + sum(each.pending + each.running for each in active)) if active else None


def duration(seconds: float) -> str:
    """Return a time as people read it: 42 s, 3:20 min, 2:05 h or 3 d 4 h."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    minutes = round(seconds / 60)
    if minutes < 24 * 60:
        return f"{minutes // 60}:{minutes % 60:02d} h"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24} h"


def progress_bar(done: int, total: int, columns: int) -> str:
    """Return a bar of so many columns."""
    filled = round(columns * min(1.0, done / total)) if total else columns
    return "━" * filled + "─" * (columns - filled)


def curve(values: Sequence[float]) -> str:
    """Return a small curve, one character for each value, from their minimum to their maximum."""
    low, high = min(values), max(values)
    scale = (len(_CURVE) - 1) / (high - low) if high > low else 0.0
    return "".join(_CURVE[round((value - low) * scale)] for value in values)


def _shown(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
