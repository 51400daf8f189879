import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from megatron_prime.observability import Metrics, MetricsLogger
from megatron_prime.observability.jsonl import read_history
from tests.observability.test_durable import full_above


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
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("policy/loss")] == expected


def test_a_step_that_one_file_could_not_take_is_in_all_files_later(tmp_path):
    with MetricsLogger(tmp_path) as logger:
        logger.log(0, Metrics({"policy/loss": 0.0}))
        room = max(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
        with full_above(room + 20), pytest.raises(OSError, match="File too large"):
            for step in (1, 2):
                logger.log(step, Metrics({f"policy/{'loss' * 20}": step}))
        logger.log(3, Metrics({"policy/loss": 3.0}))
    steps = [entry["step"] for entry in read_history(tmp_path / "metrics.jsonl")]
    assert steps[0] == 0 and steps[-1] == 3 and steps == sorted(set(steps)) and 1 in steps
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("policy/loss")] == [0, 3]
    assert events.Scalars(f"policy/{'loss' * 20}")[0].step == 1
