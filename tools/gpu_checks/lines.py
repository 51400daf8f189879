"""What a check says: one line a figure, judged where there is a goal, and the setting that it runs in."""

import importlib.util
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Status = Literal["pass", "fail", "skipped", "info"]
ROOT = Path(__file__).parents[2]
FAULTS = (RuntimeError, ValueError, TypeError, AssertionError, AttributeError, ImportError)
"""Memory runs out, or a library refuses a setting or fails in it."""


@dataclass(frozen=True)
class Setting:
    """How a check is run."""

    device: Literal["cuda", "cpu"]
    is_tiny: bool
    """Toy sizes: the code is run, and no figure of speed means anything."""
    folder: Path
    """The check's own, for what it writes."""
    sglang_python: Path | None = None

    @property
    def is_cuda(self) -> bool:
        """On a GPU."""
        return self.device == "cuda"

    @property
    def why_no_speed(self) -> str | None:
        """Why figures of speed and memory are not judged here."""
        if not self.is_cuda:
            return "no GPU"
        return "toy size" if self.is_tiny else None


@dataclass(frozen=True)
class Line:
    """One figure, or one thing that was not done."""

    what: str
    status: Status
    value: float | str | None = None
    unit: str = ""
    goal: str = ""
    note: str = ""
    """Of a line that was skipped, the reason."""
    series: tuple[float, ...] = ()
    """Of a curve, one value a step."""

    @property
    def figure(self) -> str:
        """The value in words."""
        if self.value is None:
            return ""
        text = self.value if isinstance(self.value, str) else f"{self.value:.4g}"
        return f"{text} {self.unit}".strip()


@dataclass(frozen=True)
class Outcome:
    """A check that was run, or was not."""

    name: str
    says: str
    lines: tuple[Line, ...]
    seconds: float
    fault: str = ""
    """Why it did not come to its end."""

    @property
    def status(self) -> str:
        """Of the whole: fail when any line failed, skipped when nothing was done."""
        if self.fault or any(line.status == "fail" for line in self.lines):
            return "fail"
        return "pass" if any(line.status in ("pass", "info") for line in self.lines) else "skipped"


def told(what: str, value: float | str, unit: str = "", note: str = "") -> Line:
    """A figure without a goal."""
    return Line(what, "info", value, unit, note=note)


def judged(
    what: str, value: float, unit: str, goal: str, is_met: bool, note: str = "", why_not: str | None = None
) -> Line:
    """A figure with a goal; `why_not` says why it is not to be judged here: it is then left out."""
    if why_not is not None:
        return Line(what, "skipped", None, unit, goal, why_not)
    return Line(what, "pass" if is_met else "fail", value, unit, goal, note)


def skipped(what: str, reason: str, goal: str = "") -> Line:
    """Something that cannot be done here."""
    return Line(what, "skipped", goal=goal, note=reason)


def broke(what: str, error: Exception) -> Line:
    """One of several settings that ended in one of FAULTS; the others can go on. The traceback goes to the log."""
    traceback.print_exception(error)
    words = str(error).strip().splitlines()
    return Line(what, "fail", note=f"{type(error).__name__}: {words[0][:300] if words else ''}")


def has_package(name: str) -> bool:
    """Whether this environment has it; nothing is imported."""
    return importlib.util.find_spec(name) is not None
