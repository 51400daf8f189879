"""Logs a run to MLflow (https://mlflow.org): to a server, or to files in run_dir/mlruns.

mlflow-skinny is enough: the local store is the one of files, because MLflow's SQLite store needs SQLAlchemy. MLflow
refuses its file store unless MLFLOW_ALLOW_FILE_STORE is set, which is done here for the default place alone.
"""

import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from megatron_prime.observability.jsonl import Record
from megatron_prime.observability.loggers.markdown import samples_text, settings_text
from megatron_prime.observability.loggers.position import Position, finite_values
from megatron_prime.observability.loggers.protocol import RunInfo, StepRecord, flat_settings

METRICS_PER_REQUEST = 1000
"""MLflow's limit."""
PARAMS_PER_REQUEST = 100
"""MLflow's limit."""
MAX_PARAM_CHARS = 500
"""Length to which settings are cut; MLflow's own limit depends on its version."""
DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
"""Variables of MLflow that are set unless the user has set them: a server that is away fails soon, and nothing calls
home."""


class MlflowLogger:
    """A run of MLflow with the steps of metrics.jsonl.

    The variables of MLflow apply: MLFLOW_TRACKING_URI names a server or another store, and MLFLOW_EXPERIMENT_NAME
    replaces logging.project. MLflow has no histograms; sample responses are artifacts.

    Args:
        info: what to show of the run.
        resume_step: first step that this attempt logs.
        history: returns the records of metrics.jsonl before resume_step.
    """

    def __init__(self, info: RunInfo, resume_step: int, history: Callable[[], Sequence[Record]]) -> None:
        for name, value in DEFAULTS.items():
            os.environ.setdefault(name, value)
        self._info = info
        self._client = MlflowClient(tracking_uri=_tracking_uri(info.run_dir))
        self._position = Position(info.run_dir, "mlflow")
        experiment = self._experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", info.project))
        is_continued = self._position.continues(resume_step) and self._is_there(self._position.run_id)
        if is_continued:
            self._client.update_run(self._position.run_id, status="RUNNING")
        else:
            self._begin(experiment)
            for earlier in history():
                self._send(int(earlier["step"] or 0), finite_values(earlier))
        self._artifact(settings_text(info.provenance), f"provenance/from_step_{resume_step:08d}.md")

    def log(self, record: StepRecord) -> None:
        """Send one step."""
        self._send(record.step, finite_values(record.metrics))
        if record.details.samples:
            self._artifact(samples_text(record.details.samples), f"samples/step_{record.step:08d}.md")

    def close(self) -> None:
        """End the run; KILLED is MLflow's word for a run that has not reached its last step."""
        is_whole = self._position.last_step >= self._info.num_steps
        self._client.set_terminated(self._position.run_id, "FINISHED" if is_whole else "KILLED")

    def _begin(self, experiment: str) -> None:
        """Begin a run, and put away the one that it replaces; MLflow keeps deleted runs until they are purged."""
        replaced = self._position.run_id
        run = self._client.create_run(experiment, run_name=self._info.name)
        self._position.begin(run.info.run_id, -1)
        if replaced and self._is_there(replaced):
            self._client.delete_run(replaced)
        params = [
            Param(_valid_name(name), str(value)[:MAX_PARAM_CHARS])
            for name, value in flat_settings(self._info.config).items()
        ]
        for start in range(0, len(params), PARAMS_PER_REQUEST):
            self._client.log_batch(run.info.run_id, params=params[start : start + PARAMS_PER_REQUEST])

    def _experiment(self, name: str) -> str:
        found = self._client.get_experiment_by_name(name)
        return self._client.create_experiment(name) if found is None else found.experiment_id

    def _is_there(self, run_id: str) -> bool:
        try:
            return self._client.get_run(run_id).info.lifecycle_stage == "active"
        except MlflowException:
            return False

    def _send(self, step: int, values: Mapping[str, float]) -> None:
        self._position.sending(step)
        now_ms = int(time.time() * 1000)
        metrics = [Metric(_valid_name(name), value, now_ms, step) for name, value in values.items()]
        for start in range(0, len(metrics), METRICS_PER_REQUEST):
            self._client.log_batch(
                self._position.run_id, metrics=metrics[start : start + METRICS_PER_REQUEST]
            )

    def _artifact(self, text: str, path: str) -> None:
        self._client.log_text(self._position.run_id, text, path)


def _tracking_uri(run_dir: Path) -> str:
    named = os.environ.get("MLFLOW_TRACKING_URI")
    if named:
        return named
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    return (run_dir / "mlruns").absolute().as_uri()


def _valid_name(name: str) -> str:
    """Return a name with the characters that MLflow allows, none of whose parts is a step up in its folders."""
    allowed = re.sub(r"[^\w\-. :/]", "_", name, flags=re.ASCII)
    return "/".join(part if part.strip(". ") else "_" for part in allowed.split("/"))
