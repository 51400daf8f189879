"""Guards: updates that are not finite are skipped, counted and, if too many follow each other, stop the run.

A skipped update leaves weights, moments and the optimizer's step count as they were; the learning-rate schedule counts
trainer steps, so it advances whether updates were skipped or not. The counters and the alarms' windows are part of a
checkpoint, so a resumed run continues them.
"""

import json
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from megatron_prime.config.tables.guards import GuardsConfig
from megatron_prime.observability.durable import make_private, replace_file
from megatron_prime.observability.jsonl import finite_or_none
from megatron_prime.training.health.alarms import TRUNCATION, TRUNCATION_ADVICE, Alarms
from megatron_prime.training.health.credit_alarms import PROCESS_ADVICE
from megatron_prime.training.health.not_finite import SkippedUpdate

RECENT_STEPS = 10
"""Number of last steps whose metrics a report contains."""


class GuardError(RuntimeError):
    """A run ends because a limit of [guards] is exceeded; raised on every rank alike."""


class EndlessResponsesError(GuardError):
    """The policy has not ended a single response for as many steps as guards.max_truncated_steps allows."""


class MisleadingRewardsError(GuardError):
    """The process rewards were alarming for as many steps in a row as guards.max_process_alarm_steps allows."""


class Guards:
    """Watches the updates of every role, and the metrics of every step.

    Every rank has one. All see the same values, so all decide alike. The rank whose `writes` is true writes the report.

    Args:
        config: limits and windows.
        run_dir: reports go to run_dir/reports.
        writes: true on rank 0.
        warn: receives one line per skipped update, and one per episode of an alarm.
    """

    def __init__(
        self, config: GuardsConfig, run_dir: Path, writes: bool, warn: Callable[[str], None]
    ) -> None:
        self._config = config
        self._folder = run_dir / "reports"
        self._writes = writes
        self._warn = warn
        self._alarms = Alarms(config)
        self._in_a_row: dict[str, int] = {}
        self._num_skipped = 0
        self._num_truncated_steps = 0
        self._num_process_alarms = 0
        self._recent: deque[dict[str, float | None]] = deque(maxlen=RECENT_STEPS)
        self.begin_step(0)

    def begin_step(self, step: int) -> None:
        """Attribute the updates that follow to this step (counted from 1)."""
        self._step = step
        self._num_skipped_in_step = 0
        self._minibatches: dict[str, int] = {}

    def stepped(self, role: str) -> None:
        """Count an update that was applied."""
        self._in_a_row[role] = 0
        self._minibatches[role] = self._minibatches.get(role, 0) + 1

    def skipped(self, update: SkippedUpdate) -> None:
        """Count an update that was skipped on every rank.

        Raises:
            FloatingPointError: guards.max_skipped_in_a_row updates of the role were skipped one after another; raised
                on every rank, after a report was written.
        """
        role = update.role
        minibatch = self._minibatches.get(role, 0)
        self._minibatches[role] = minibatch + 1
        self._in_a_row[role] = in_a_row = self._in_a_row.get(role, 0) + 1
        self._num_skipped += 1
        self._num_skipped_in_step += 1
        where = f"step {self._step}, minibatch {minibatch + 1}"
        if in_a_row < self._config.max_skipped_in_a_row:
            self._warn(f"{where}: the {role}'s update is skipped, not finite: {update.summary()}")
            return
        path = self._folder / f"not_finite_step_{self._step:08d}.json"
        if self._writes:
            self._report(path, update, minibatch)
        raise FloatingPointError(
            f"{where}: {in_a_row} updates of the {role} in a row were not finite (guards.max_skipped_in_a_row): "
            f"{update.summary()}. None of them reached the weights, and the newest checkpoint is untouched. Lower "
            f"{role}.lr, or look for a loss that ran away; what was seen is in {path}"
        )

    def end_step(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Return the metrics of guards and alarms for a step whose own metrics are complete."""
        self._recent.append({"step": float(self._step), **finite_or_none(metrics)})
        added = {
            "num_skipped_updates": float(self._num_skipped_in_step),
            "num_skipped_in_all": float(self._num_skipped),
        }
        flags, warnings = self._alarms.look(metrics)
        for text in warnings:
            self._warn(f"step {self._step}: {text}")
        return added | flags

    def check_endings(self, metrics: Mapping[str, float]) -> None:
        """Count the steps in a row in which every sampled response was truncated.

        Raises:
            EndlessResponsesError: there were guards.max_truncated_steps of them.
        """
        is_truncated = metrics.get(TRUNCATION) == 1.0
        self._num_truncated_steps = self._num_truncated_steps + 1 if is_truncated else 0
        limit = self._config.max_truncated_steps
        if limit and self._num_truncated_steps >= limit:
            raise EndlessResponsesError(
                f"step {self._step}: every response of the last {self._num_truncated_steps} steps was truncated "
                f"(guards.max_truncated_steps): {TRUNCATION_ADVICE}. The newest checkpoint is untouched"
            )
        if self._num_truncated_steps == 1:
            self._warn(f"step {self._step}: ALL RESPONSES WERE TRUNCATED: {TRUNCATION_ADVICE}")

    def check_process_rewards(self, metrics: Mapping[str, float]) -> None:
        """Count the steps in a row with the alarm for misleading process rewards.

        Raises:
            MisleadingRewardsError: there were guards.max_process_alarm_steps of them.
        """
        is_alarming = metrics.get("guards/process_alarm") == 1.0
        self._num_process_alarms = self._num_process_alarms + 1 if is_alarming else 0
        limit = self._config.max_process_alarm_steps
        if limit and self._num_process_alarms >= limit:
            raise MisleadingRewardsError(
                f"step {self._step}: process rewards have misled the policy for {self._num_process_alarms} steps "
                f"(guards.max_process_alarm_steps): {PROCESS_ADVICE}. The newest checkpoint is untouched"
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the counters and windows, as JSON can hold them."""
        return {
            "in_a_row": dict(self._in_a_row),
            "num_skipped": self._num_skipped,
            "num_truncated_steps": self._num_truncated_steps,
            "num_process_alarms": self._num_process_alarms,
            "alarms": self._alarms.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint; an empty state starts from zero."""
        self._in_a_row = dict(state.get("in_a_row", {}))
        self._num_skipped = state.get("num_skipped", 0)
        self._num_truncated_steps = state.get("num_truncated_steps", 0)
        self._num_process_alarms = state.get("num_process_alarms", 0)
        self._alarms.load_state_dict(state.get("alarms", {}))

    def _report(self, path: Path, update: SkippedUpdate, minibatch: int) -> None:
        report = {
            "what": "updates that are not finite stopped the run",
            "summary": update.summary(),
            "step": self._step,
            "minibatch": minibatch + 1,
            "skipped_in_a_row": self._in_a_row[update.role],
            "skipped_in_all": self._num_skipped,
            **update.to_dict(),
            "recent_metrics": list(self._recent),
        }
        make_private(path.parent)
        replace_file(path, json.dumps(report, indent=1, allow_nan=False) + "\n")
