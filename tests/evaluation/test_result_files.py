import json
import math

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from megatron_prime.evaluation.result_files import write_metrics


def test_metrics_are_written_as_json_and_tensorboard(tmp_path):
    write_metrics(tmp_path / "a.json", tmp_path / "events", "eval/", {"x": 0.5, "y": math.nan})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 0.5, "y": None}
    events = EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    (event,) = events.Scalars("eval/x")
    assert (event.step, event.value) == (0, 0.5)
