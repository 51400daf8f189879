"""Real runs in MLflow's file store, killed and resumed."""

import math

import pytest

from megatron_prime.observability.loggers.protocol import Details, RunInfo, Sample, StepRecord


@pytest.fixture
def make(monkeypatch):
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    for name in ("MLFLOW_ALLOW_FILE_STORE", "MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_HTTP_REQUEST_MAX_RETRIES"):
        monkeypatch.setenv(name, {"MLFLOW_ALLOW_FILE_STORE": "true"}.get(name, "1"))
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    # No other test needs the package, whose import takes seconds.
    from megatron_prime.observability.loggers.mlflow_runs import MlflowLogger

    return MlflowLogger


def logged(make, run_dir, resume_step, steps, value=0.0):
    info = RunInfo(
        run_dir, "first", config={"seed": 7, "policy": {"lr": 1e-6}}, provenance={"host": "a"}, num_steps=6
    )
    history = [{"step": step, "policy/entropy": 0.5 + step, "prm/ce": None} for step in range(resume_step)]
    logger = make(info, resume_step, lambda: history)
    for step in steps:
        details = Details(samples=[Sample("<b>1+1</b>", "2", 1.0)]) if step == steps[0] else Details()
        metrics = {
            "policy/entropy": value + step,
            "prm/ce": math.nan,
            "rollout/accuracy_by_source/AIME (24)": 0.5,
            "rollout/accuracy_by_source/..": 0.25,
        }
        logger.log(StepRecord(step, metrics, details))
    logger.close()


def test_a_run_that_is_killed_and_resumed_shows_every_step_once(make, tmp_path):
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=(tmp_path / "mlruns").as_uri())

    def runs():
        experiment = client.get_experiment_by_name("megatron-prime")
        return client.search_runs([experiment.experiment_id])

    def values(run, name="policy/entropy"):
        return [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, name)]

    logged(make, tmp_path, 0, range(3))
    (first,) = runs()
    assert values(first) == [(0, 0.0), (1, 1.0), (2, 2.0)]
    assert first.data.params == {"seed": "7", "policy.lr": "1e-06"}
    assert (first.info.run_name, first.info.status) == ("first", "KILLED")
    assert {"rollout/accuracy_by_source/AIME _24_", "rollout/accuracy_by_source/_"} < set(first.data.metrics)
    assert "prm/ce" not in first.data.metrics
    assert [file.path for file in client.list_artifacts(first.info.run_id, "samples")] == [
        "samples/step_00000000.md"
    ]

    # A stop as planned: the same run goes on.
    logged(make, tmp_path, 3, range(3, 6))
    (second,) = runs()
    assert second.info.run_id == first.info.run_id
    assert [step for step, _ in values(second)] == [0, 1, 2, 3, 4, 5]

    # A kill after step 5, with a checkpoint after step 3: a new run has the history, and the old one is deleted.
    logged(make, tmp_path, 4, range(4, 7), value=0.25)
    (third,) = runs()
    assert third.info.run_id != first.info.run_id
    assert values(third) == [(0, 0.5), (1, 1.5), (2, 2.5), (3, 3.5), (4, 4.25), (5, 5.25), (6, 6.25)]
    assert third.info.status == "FINISHED"


def test_a_server_that_is_away_is_an_error_soon(make, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(Exception, match="failed"):
        make(RunInfo(tmp_path), 0, list)
