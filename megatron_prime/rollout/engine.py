"""What the trainer asks of a rollout engine, whichever it is.

serving --begin_weight_update--> updating --load_weights...--> updating --end_weight_update--> serving
   |                                                              |
   +--release_memory--> serving or, where that costs the weights, none      +-- a tensor is incomplete --> no weights
"""

from collections.abc import Sequence
from typing import Protocol

from megatron_prime.types import Prompt, Rollout, SamplingParams, WeightBucket

NO_WEIGHTS = -1
"""policy_version of an engine without a complete set of weights."""


class EngineError(RuntimeError):
    """An engine could not do its work; the message says what failed and how to mend it."""


class WeightSyncError(EngineError):
    """A weight sync was used out of order, or left tensors incomplete."""


class Engine(Protocol):
    """Samples responses from the policy.

    Every method is collective: all training ranks call it, in the same order and with equal arguments.
    """

    @property
    def policy_version(self) -> int:
        """Version of the last complete weight sync; NO_WEIGHTS before, during and after a failed one."""
        ...

    def generate(
        self, prompts: Sequence[Prompt], params: SamplingParams, group_size: int, stream_key: int
    ) -> list[Rollout]:
        """Sample group_size responses to each prompt.

        The tokens depend on the weights, params, the engine's seed, stream_key, the prompt's index and the
        sample index; never on batching, the number of ranks or the other prompts, except where rounding
        decides a near-tie.

        Args:
            prompts: may repeat; the repetitions get responses of their own.
            params: how to sample.
            group_size: responses a prompt.
            stream_key: chooses fresh random numbers; equal keys repeat the responses. In [0, 2**64).

        Returns:
            The complete list on every rank, ordered by prompt and then by sample_index, unverified.

        Raises:
            ValueError: params or a prompt that the model can't serve.
            WeightSyncError: there are no complete weights.
            EngineError: a part of the engine failed and could not be brought back.
        """
        ...

    def release_memory(self) -> None:
        """Say that nothing will be sampled before the next weight sync, which takes back what is given up here.

        An engine that shares GPUs with the trainer gives all its memory up, weights included, and then refuses to
        generate; others may do nothing.

        Raises:
            EngineError: a server is in an unknown state that it can't be brought out of.
        """
        ...

    def begin_weight_update(self, policy_version: int) -> None:
        """Open a sync to policy_version (>= 0). The old weights are invalid from here on.

        Raises:
            WeightSyncError: a sync is already open.
        """
        ...

    def load_weights(self, bucket: WeightBucket) -> None:
        """Copy blocks in; they may be overwritten by the caller once this returns.

        Raises:
            WeightSyncError: no sync is open, or the bucket belongs to another version.
            ValueError: unknown tensor, block outside its tensor, or entries written twice.
        """
        ...

    def end_weight_update(self) -> None:
        """Close the sync and serve the new version.

        Raises:
            WeightSyncError: names the tensors not written entirely; the engine then stays without weights.
        """
        ...

    def weight_checksums(self) -> dict[str, str]:
        """`weight_intake.tensor_checksum` of every tensor that a sync writes, by HF name."""
        ...

    def close(self) -> None:
        """Free the engine's memory and processes. May be called twice."""
        ...
