"""The interface of a rollout engine, and its errors.

An engine gets its weights by a `rollout.weight_sync.WeightSync`, which knows both the trainer and the engine.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from megatron_prime.rollout.episode import Environments
from megatron_prime.types import Prompt, Rollout, SamplingParams

NO_WEIGHTS = -1
"""The policy_version of an engine without a complete set of weights."""


class EngineError(RuntimeError):
    """An engine failed; the message says what failed and how to fix it."""


class WeightSyncError(EngineError):
    """A weight sync failed or was used out of order; or the engine was used without complete weights."""


class Engine(Protocol):
    """Samples responses from the policy.

    Every method is collective: all training ranks call it, in the same order and with equal arguments.
    """

    @property
    def policy_version(self) -> int:
        """Version of the last complete weight sync; NO_WEIGHTS before the first, during one, and after a failure."""
        ...

    def generate(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams,
        group_size: int,
        stream_key: int,
        environments: Environments | None = None,
    ) -> list[Rollout]:
        """Sample `group_size` responses to each prompt.

        The tokens depend on the weights, params, the engine's seed, stream_key, the prompt's index and the
        sample index; never on batching, the number of ranks or the other prompts, except where rounding
        decides a near-tie.

        Args:
            prompts: may contain duplicates, each of which gets responses of its own.
            params: sampling parameters.
            group_size: number of responses per prompt.
            stream_key: selects the random numbers; equal keys repeat the responses. In [0, 2**64).
            environments: reply to the turns of each response; None for responses of one turn.

        Returns:
            The complete list on every rank, ordered by prompt and then by sample_index, unverified.

        Raises:
            ValueError: the model can't serve these params or prompts.
            WeightSyncError: there are no complete weights.
            EngineError: a part of the engine failed and could not be restarted.
        """
        ...

    def while_training(self) -> AbstractContextManager[None]:
        """Return a context for sampling while the trainer changes the policy. Not collective.

        The engine's weights are then nowhere else: a server that loses them is out until the next weight sync, and
        without any server left `generate` raises an EngineError.
        """
        ...

    def release_memory(self) -> None:
        """Announce that nothing will be sampled before the next weight sync.

        An engine that shares GPUs with the trainer frees all its memory, weights included, and refuses to generate
        until the next weight sync, which allocates the memory again. Other engines may do nothing.

        Raises:
            EngineError: a server did not answer, and it is unknown whether it holds memory.
        """
        ...

    def close(self) -> None:
        """Free the engine's memory and processes. May be called twice."""
        ...


class CheckpointEngine(Engine, Protocol):
    """An engine that can also sample from the weights of a checkpoint, without a trainer."""

    def load_from_hf(self, model_path: Path, policy_version: int = 0) -> None:
        """Load the weights of an HF checkpoint in safetensors.

        Raises:
            ValueError: the folder is not a checkpoint of the engine's model.
            WeightSyncError: the weights are incomplete, or did not reach every server.
        """
        ...
