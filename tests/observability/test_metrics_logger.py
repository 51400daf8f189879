import numpy as np
import pytest

from megatron_prime.observability import Metrics, MetricsLogger
from megatron_prime.observability.jsonl import read_history
from megatron_prime.observability.loggers.protocol import Details
from tests.observability.test_durable import full_above
from tests.support.event_files import EventFiles


def test_one_call_writes_every_file_and_a_resume_truncates_all(tmp_path):
    with MetricsLogger(tmp_path) as logger:
        for step in range(4):
            logger.log(step, Metrics({"policy/loss": step}))
    with MetricsLogger(tmp_path, resume_step=2) as logger:
        logger.log(2, Metrics({"policy/loss": 9.0}))
        logger.close()
    expected = [(0, 0.0), (1, 1.0), (2, 9.0)]
    assert [
        (entry["step"], entry["policy/loss"]) for entry in read_history(tmp_path / "metrics.jsonl")
    ] == expected
    events = EventFiles(tmp_path / "tensorboard")
    assert [(event.step, event.value) for event in events.scalars("policy/loss")] == expected


def test_a_step_that_one_file_could_not_take_is_in_all_files_later(tmp_path):
    with MetricsLogger(tmp_path) as logger:
        logger.log(0, Metrics({"policy/loss": 0.0}))
        room = (tmp_path / "metrics.jsonl").stat().st_size
        with full_above(room + 20), pytest.raises(OSError, match="File too large"):
            for step in (1, 2):
                logger.log(step, Metrics({f"policy/{'loss' * 20}": step}))
        logger.log(3, Metrics({"policy/loss": 3.0}))
    steps = [entry["step"] for entry in read_history(tmp_path / "metrics.jsonl")]
    assert steps[0] == 0 and steps[-1] == 3 and steps == sorted(set(steps)) and 1 in steps
    events = EventFiles(tmp_path / "tensorboard")
    assert [event.step for event in events.scalars("policy/loss")] == [0, 3]
    assert events.scalars(f"policy/{'loss' * 20}")[0].step == 1


def test_a_logger_that_fails_warns_once_and_the_record_comes_later(tmp_path):
    warnings = []
    with MetricsLogger(tmp_path, warn=warnings.append) as logger:
        logger.log(0, Metrics({"policy/entropy": 0.0}))
        # The event file is the longer one.
        (event_file,) = (tmp_path / "tensorboard").iterdir()
        with full_above(event_file.stat().st_size + 20):
            for step in (1, 2):
                logger.log(step, Metrics({"policy/entropy": step}))
        logger.log(3, Metrics({"policy/entropy": 3.0}))
    (warning,) = warnings
    assert "TensorBoardLogger" in warning and "metrics.jsonl has every record" in warning
    for steps in (
        [entry["step"] for entry in read_history(tmp_path / "metrics.jsonl")],
        [point.step for point in EventFiles(tmp_path / "tensorboard").scalars("policy/entropy")],
    ):
        assert steps == [0, 1, 2, 3]


def test_a_logger_that_cannot_be_opened_does_not_stop_the_run(tmp_path):
    (tmp_path / "tensorboard").write_text("no folder")
    warnings = []
    with MetricsLogger(tmp_path, warn=warnings.append) as logger:
        logger.log(0, Metrics({"policy/entropy": 0.0}))
    assert len(read_history(tmp_path / "metrics.jsonl")) == 1
    assert len(warnings) == 1 and "tensorboard" in warnings[0]


def test_without_backends_there_is_metrics_jsonl_alone(tmp_path):
    with MetricsLogger(tmp_path, backends=()) as logger:
        logger.log(0, Metrics({"policy/entropy": 0.0}))
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_details_of_a_step_reach_the_loggers(tmp_path):
    details = {1: Details({"advantage/tokens": np.arange(3.0)})}
    with MetricsLogger(tmp_path, details=lambda step: details.get(step, Details())) as logger:
        for step in range(3):
            logger.log(step, Metrics({"policy/entropy": step}))
    assert [step for step, _ in EventFiles(tmp_path / "tensorboard").tensors("advantage/tokens")] == [1]
