"""Functions that one process runs in tests/models/test_chunk_state.py."""

import tempfile
from pathlib import Path
from types import SimpleNamespace

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedTensor

from megatron_prime.models.chunk_state import chunk_states, fill_chunks
from tests.support.layout_worker import topology_of


class LayerWithScales(torch.nn.Linear):
    """A linear layer with extra state besides its parameters, like the layers of Transformer Engine."""

    scales = "scales of its own"

    def get_extra_state(self):
        return self.scales

    def set_extra_state(self, state):
        self.scales = state


class ChunkWithScales(torch.nn.Module):
    """A model chunk with one such layer and the methods that checkpoints need."""

    def __init__(self, fp8, recipe):
        super().__init__()
        self.layer = LayerWithScales(2, 2, bias=False)
        self.config = SimpleNamespace(fp8=fp8, fp8_recipe=recipe)

    def sharded_state_dict(self):
        return {
            "layer.weight": ShardedTensor.from_rank_offsets("layer.weight", self.layer.weight.detach()),
            "layer._extra_state": ShardedObject("layer._extra_state", self.layer.scales, (1,), (0,)),
        }


def layer_states():
    """Return the extra state that a checkpoint contains, and the state after loading one with and without it."""
    topology_of("one")
    models = {
        name: [ChunkWithScales(*fp8)]
        for name, fp8 in {
            "bf16": (None, "delayed"),
            "tensorwise": ("hybrid", "tensorwise"),
            "delayed": ("hybrid", "delayed"),
        }.items()
    }

    def states(model, written=None):
        return [key for key in chunk_states(model, written)["model0"] if "extra" in key]

    found = {"kept": {name: states(model) for name, model in models.items()}}
    with tempfile.TemporaryDirectory() as root:
        for name in ("bf16", "delayed"):
            folder = Path(root, name)
            folder.mkdir()
            dist_checkpointing.save(chunk_states(models[name]), str(folder))
        found["from one without"] = states(models["delayed"], Path(root, "bf16"))
        found["from one with"] = states(models["delayed"], Path(root, "delayed"))
    weight = models["delayed"][0].layer.weight.detach()
    fill_chunks(models["delayed"], {"model0": {"layer.weight": weight}})
    found["loaded without"] = models["delayed"][0].layer.scales
    try:
        fill_chunks(models["delayed"], {"model0": {}})
    except AssertionError as error:
        found["refused"] = str(error)
    return found
