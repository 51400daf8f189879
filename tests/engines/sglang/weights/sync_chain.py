"""A chain of weight syncs to real servers, of which some are disturbed."""

import os
import random
import signal
from collections import Counter
from pathlib import Path

import torch

from megatron_prime.engines.sglang.engine import SGLangEngine
from megatron_prime.engines.sglang.loader.changes import bits_of
from megatron_prime.engines.sglang.weights.shard_sync import ShardSync
from megatron_prime.engines.sglang.weights.source import WeightSource
from megatron_prime.resharding.layouts import EngineLayout
from tests.support.one_rank import OneRank

DISTURBANCES = ("none", "damaged", "cut", "killed", "restarted", "overwritten")
"""Nothing; a flipped bit in a message of changes; a sender that fails in the middle; a server that is killed during the
transfer; one that is killed before it; servers that load other weights between two syncs."""


class SyncChain:
    """A trainer of one process whose weights change a little before every push.

    Args:
        engine: supervised servers of one rank each.
        path: HF checkpoint of the model.
        state: its tensors by HF name.
        dtype: of the servers.
        share: of the elements that change before a push.
    """

    def __init__(
        self,
        engine: SGLangEngine,
        path: Path,
        state: dict[str, torch.Tensor],
        dtype: torch.dtype,
        share: float,
        seed: int = 0,
    ) -> None:
        self._engine = engine
        self._path = path
        self._state = {name: tensor.detach().to(dtype, copy=True) for name, tensor in state.items()}
        self._share = share
        self._random = random.Random(seed)
        self._generator = torch.Generator().manual_seed(seed)
        self.policy = OneRank(path, dtype)
        self.policy.parameters |= {n: t.to(dtype) for n, t in self.policy.parameters.items()}
        engines = EngineLayout.consecutive(engine.num_servers, 1, first_rank=1)
        source = WeightSource.build(
            self.policy.shape,
            self.policy.parameters,
            self.policy.topology,
            dtype,
            engines,
            max_bucket_bytes=24 << 10,
        )
        self.sync = ShardSync(engine, source, timeout_s=30)
        self.version = 0
        self.disturbed: Counter[str] = Counter()
        """Disturbances that have happened."""

    def push(self, disturbance: str) -> dict[str, float]:
        """Change the weights and push them, disturbed in some way; return the sync's measurements."""
        for tensor in self._state.values():
            # A changed exponent or sign, so that no change is lost in the rounding.
            is_changed = torch.rand(tensor.shape, generator=self._generator) < self._share
            bits_of(tensor)[is_changed] ^= 1 << self._random.randrange(8 * tensor.element_size())
        self.policy.fill(self._state)
        self.version += 1
        sender = self.sync.source.sender
        original, server = sender.changed, self._random.randrange(self._engine.num_servers)
        turn = self._random.randrange(1, 6)

        def disturbed(tensors, changes, checksums):
            nonlocal turn
            places = [place for place, change in enumerate(changes) if change is not None and change.parts]
            turn -= bool(places)
            if turn == 0 and disturbance in ("damaged", "cut", "killed"):
                turn -= 1
                self.disturbed[disturbance] += 1
                if disturbance == "cut":
                    raise RuntimeError("the connection was cut")
                if disturbance == "killed":
                    self._kill(server)
                if disturbance == "damaged":
                    changes = list(changes)
                    place = self._random.choice(places)
                    values = changes[place].values.clone()
                    values[self._random.randrange(len(values))] ^= 1 << self._random.randrange(15)
                    changes[place] = changes[place]._replace(values=values)
            return original(tensors, changes, checksums)

        if disturbance == "restarted":
            self._kill(server)
            self.disturbed[disturbance] += 1
        if disturbance == "overwritten":
            self._engine.load_from_hf(self._path, self.version)
            self.version += 1
            self.disturbed[disturbance] += 1
        sender.__dict__["changed"] = disturbed
        try:
            return self.sync.push(self.version)
        finally:
            del sender.__dict__["changed"]

    def differences(self) -> dict[int, str]:
        """Return what SGLang's own checksums find in any server that differs from the trainer's weights."""
        return self.sync.full_check()

    def _kill(self, server: int) -> None:
        pid = self._engine.servers[server].pid
        if pid is not None:
            os.killpg(pid, signal.SIGKILL)
