"""The interface of a weight sync: the one path by which the policy's weights reach a rollout engine.

A weight sync knows both ends, the policy's parameters on the training ranks and the engine; trainer and loop only call
`push`. Each kind of engine has its own: `resharding.block_sync` for the embedded engine, `engines.sglang.weights` for
servers.
"""

from typing import Protocol


class WeightSync(Protocol):
    """Brings a rollout engine to the policy's current weights.

    `push` and `resync` are collective: all training ranks call them at the same time.
    """

    def push(self, policy_version: int) -> dict[str, float]:
        """Send all weights; returns when the whole engine is proven to serve them as `policy_version` (>= 0).

        Returns measurements for the metrics group `weight_sync`, equal on every rank.

        Raises:
            ValueError: the version is negative.
            WeightSyncError: the weights did not arrive completely, on every rank. The engine then has no weights and
                refuses to sample until a push succeeds.
        """
        ...

    def resync(self, server: int) -> None:
        """Give one restarted server of the engine, by index, the weights that the others serve.

        Raises EngineError when that fails; `ServerUnreachableError`, a kind of it, when another try may succeed.
        """
        ...

    def close(self) -> None:
        """Free the sync's connections, buffers and files. Not collective.

        The engine calls this when it is closed, once its servers have ended and use them no more.
        """
        ...
