"""The results of checks, one line per measurement, and the setting that checks run in."""

import importlib.util
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Status = Literal["pass", "fail", "skipped", "info"]
ROOT = Path(__file__).parents[2]
FAULTS = (RuntimeError, ValueError, TypeError, AssertionError, AttributeError, ImportError)
"""Errors of a single configuration: memory runs out, or a library refuses a setting or fails with it."""


@dataclass(frozen=True)
class Setting:
    """The conditions under which a check runs."""

    device: Literal["cuda", "cpu"]
    is_tiny: bool
    """Toy sizes, which show that the code runs; measurements of speed and memory are meaningless."""
    folder: Path
    """Folder of the check, for everything it writes."""
    sglang_python: Path | None = None
    num_gpus: int = 1
    """GPUs of this machine, or processes that stand for them on a CPU."""
    is_short: bool = False
    """Whether minutes are scarce: one FP8 recipe and fewer steps."""

    @property
    def is_cuda(self) -> bool:
        """True if the check runs on a GPU."""
        return self.device == "cuda"

    @property
    def why_no_speed(self) -> str | None:
        """Why measurements of speed and memory are not judged in this setting; None if they are."""
        if not self.is_cuda:
            return "no GPU"
        return "toy size" if self.is_tiny else None


@dataclass(frozen=True)
class Line:
    """One measurement, or one thing that could not be measured."""

    what: str
    status: Status
    value: float | str | None = None
    unit: str = ""
    goal: str = ""
    note: str = ""
    """Details; the reason, if the line was skipped or failed with an error."""
    series: tuple[float, ...] = ()
    """One value per step, for a loss curve."""

    @property
    def figure(self) -> str:
        """The value with its unit, as text."""
        if self.value is None:
            return ""
        text = self.value if isinstance(self.value, str) else f"{self.value:.4g}"
        return f"{text} {self.unit}".strip()


@dataclass(frozen=True)
class Outcome:
    """The results of a check, or the reason why it did not run."""

    name: str
    description: str
    lines: tuple[Line, ...]
    seconds: float
    fault: str = ""
    """Why it did not finish; empty if it did."""

    @property
    def status(self) -> str:
        """The status of the whole check: fail if any line failed, skipped if nothing was measured."""
        if self.fault or any(line.status == "fail" for line in self.lines):
            return "fail"
        return "pass" if any(line.status in ("pass", "info") for line in self.lines) else "skipped"


def info(what: str, value: float | str, unit: str = "", note: str = "") -> Line:
    """Return a measurement without a goal."""
    return Line(what, "info", value, unit, note=note)


def judged(
    what: str, value: float, unit: str, goal: str, is_met: bool, note: str = "", why_not: str | None = None
) -> Line:
    """Return a measurement with a goal; if `why_not` gives a reason not to judge it here, a skipped line."""
    if why_not is not None:
        return Line(what, "skipped", None, unit, goal, why_not)
    return Line(what, "pass" if is_met else "fail", value, unit, goal, note)


def skipped(what: str, reason: str, goal: str = "") -> Line:
    """Return a line for something that cannot be measured here."""
    return Line(what, "skipped", goal=goal, note=reason)


def failed(what: str, error: Exception) -> Line:
    """Return a line for a configuration that raised one of FAULTS; the traceback goes to the log."""
    traceback.print_exception(error)
    words = str(error).strip().splitlines()
    return Line(what, "fail", note=f"{type(error).__name__}: {words[0][:300] if words else ''}")


def has_package(name: str) -> bool:
    """Return whether a package is installed, without importing it."""
    return importlib.util.find_spec(name) is not None
