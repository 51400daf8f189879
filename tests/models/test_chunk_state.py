"""Checkpoints of layers with and without extra state load into layers of either kind."""

from tests.models import chunk_state_worker
from tests.support.distributed_runner import run_distributed


def test_extra_state_is_saved_only_for_delayed_scaling():
    [found] = run_distributed(chunk_state_worker.layer_states, 1)
    extra = "layer._extra_state"
    assert found["kept"] == {"bf16": [], "tensorwise": [], "delayed": [extra]}
    assert found["from one without"] == [] and found["from one with"] == [extra]
    assert found["loaded without"] == "scales of its own"
    assert "weight" in found["refused"]
