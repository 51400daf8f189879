from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from megatron_prime.observability import Metrics, MetricsLogger
from megatron_prime.observability.jsonl import read_history


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
