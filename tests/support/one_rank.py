"""The parameters of a single training rank without Megatron, as the source of weight syncs."""

import json

import torch

from megatron_prime.hf.convert import import_hf
from megatron_prime.hf.shape import ModelShape
from megatron_prime.parallel.platform import Platform
from megatron_prime.parallel.topology import Topology
from megatron_prime.resharding.layouts import EngineLayout, TrainingLayout, local_parameters
from megatron_prime.resharding.transport import RankTransport, plan_for


class OneRank:
    """The policy of one training rank; has the parts of a `BuiltModel` that a weight sync needs."""

    def __init__(self, folder, dtype=torch.float32):
        """Make parameters for the model of an HF checkpoint; they have no values before `fill`."""
        self.shape = ModelShape.from_hf_config(json.loads((folder / "config.json").read_text()))
        self.dtype = dtype
        self.pieces = local_parameters(self.shape, TrainingLayout(), 0)
        self.parameters = {piece.megatron_name: torch.empty(piece.shape) for piece in self.pieces}
        platform = Platform(torch.device("cpu"), "gloo", dtype, timeout=None)
        self.topology = Topology(platform, 0, 1, 1, 0, 1, 0, 1, 0, False)

    def named_parameters(self):
        return self.parameters

    def fill(self, state):
        """Set the parameters from HF tensors by name."""
        import_hf(
            self.parameters, self.pieces, lambda n, dim, start, length: state[n].narrow(dim, start, length)
        )

    def transport(self, cls=RankTransport):
        """Return a transport of whole tensors to this rank."""
        plan = plan_for(self.shape, self.topology, EngineLayout(1, 1, ((0,),)), self.dtype)
        return cls(plan, self.parameters, self.topology, self.dtype)
