"""Layers of either kind in checkpoints of either kind."""

from tests.models import chunk_state_worker
from tests.support.distributed_runner import run_distributed


def test_what_layers_keep_besides_their_parameters_counts_for_delayed_scales_alone():
    [found] = run_distributed(chunk_state_worker.layer_states, 1)
    extra = "layer._extra_state"
    assert found["kept"] == {"bf16": [], "tensorwise": [], "delayed": [extra]}
    assert found["from one without"] == [] and found["from one with"] == [extra]
    assert found["loaded without"] == "scales of its own"
    assert "weight" in found["refused"]
