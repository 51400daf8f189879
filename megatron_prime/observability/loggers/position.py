"""The place of a run in a service: its id there, and the last step that the service may have got.

Services cannot take back a step. When a run resumes before the last step that was sent, its logger begins a new run in
the service, with the history that metrics.jsonl keeps, and puts the old one away; otherwise it continues.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path

from megatron_prime.observability.durable import make_private, replace_file


class Position:
    """The file `run_dir/loggers/<backend>.json`."""

    def __init__(self, run_dir: Path, backend: str) -> None:
        self._path = run_dir / "loggers" / f"{backend}.json"
        self.run_id, self.last_step = _read(self._path)
        """Id of the run in the service, "" before its start; the last step sent, -1 for none."""

    def continues(self, resume_step: int) -> bool:
        """Return whether the run in the service has no step that a run from `resume_step` on computes again."""
        return bool(self.run_id) and self.last_step < resume_step

    def begin(self, run_id: str, last_step: int) -> None:
        """Remember the run in the service, before anything is sent to it."""
        make_private(self._path.parent)
        self.run_id, self.last_step = run_id, last_step
        replace_file(self._path, json.dumps({"run_id": run_id, "last_step": last_step}) + "\n")

    def sending(self, step: int) -> None:
        """Remember that a step is about to be sent."""
        self.begin(self.run_id, step)


def finite_values(metrics: Mapping[str, float | None]) -> dict[str, float]:
    """Return the values that are finite, without the step."""
    return {
        name: value
        for name, value in metrics.items()
        if name != "step" and value is not None and math.isfinite(value)
    }


def _read(path: Path) -> tuple[str, int]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return str(found["run_id"]), int(found["last_step"])
    except (OSError, ValueError, KeyError, TypeError):
        # Without the file, the run begins anew in the service; the old one stays there.
        return "", -1
