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


class GroupStream(Protocol):
    """Prompts that are being sampled, and the groups that have been: a call of `Engine.stream`.

    Every method is collective, with equal arguments and results on all ranks. Groups are numbered from 0 in the order
    in which their prompts were submitted.
    """

    @property
    def is_batched(self) -> bool:
        """Whether responses that are sampled together influence each other's rounding.

        Prompts must then be submitted at moments that do not depend on timing, or results would not repeat bit for bit.
        """
        ...

    @property
    def num_in_flight(self) -> int:
        """Number of groups that were submitted and that `finished` has not returned yet."""
        ...

    def submit(self, prompts: Sequence[Prompt]) -> None:
        """Begin to sample a group for each prompt.

        Raises:
            ValueError: the model can't serve a prompt.
        """
        ...

    def finished(self, wait_s: float | None) -> list[tuple[int, list[Rollout]]]:
        """Return the number and the responses of groups that have finished, each once, in any order.

        Args:
            wait_s: longest time to wait for the first of them; None waits for all groups. An engine that samples within
                this call takes the time that it needs.

        Raises:
            EngineError: a part of the engine failed and could not be restarted.
        """
        ...


class Engine(Protocol):
    """Samples responses from the policy.

    Every method is collective: all training ranks call it, in the same order and with equal arguments.
    """

    @property
    def policy_version(self) -> int:
        """Version of the last complete weight sync; NO_WEIGHTS before the first, during one, and after a failure."""
        ...

    def stream(
        self,
        params: SamplingParams,
        group_size: int,
        stream_key: int,
        environments: Environments | None = None,
    ) -> AbstractContextManager[GroupStream]:
        """Return a stream that samples `group_size` responses to each prompt; leaving it aborts what is unfinished.

        The tokens depend on the weights, params, the engine's seed, stream_key, the prompt's index, the number of its
        earlier occurrences in the stream and the sample index; never on batching, the number of ranks or the other
        prompts, except where rounding decides a near-tie.

        Args:
            params: sampling parameters.
            group_size: number of responses per prompt.
            stream_key: selects the random numbers; equal keys repeat the responses. In [0, 2**64).
            environments: reply to the turns of each response; None for responses of one turn.

        Raises:
            ValueError: the model can't serve these params.
            WeightSyncError: there are no complete weights.
        """
        ...

    def generate(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams,
        group_size: int,
        stream_key: int,
        environments: Environments | None = None,
    ) -> list[Rollout]:
        """Sample all groups of a list of prompts in one stream, and wait for them.

        Args:
            prompts: may contain duplicates, each of which gets responses of its own.
            params: see `stream`, as for the other arguments and the errors.
            group_size: number of responses per prompt.
            stream_key: selects the random numbers.
            environments: reply to the turns of each response.

        Returns:
            The complete list on every rank, ordered by prompt and then by sample_index, unverified.
        """
        with self.stream(params, group_size, stream_key, environments) as stream:
            stream.submit(prompts)
            groups = dict(stream.finished(None))
        return [rollout for number in range(len(prompts)) for rollout in groups[number]]

    def while_training(self) -> AbstractContextManager[None]:
        """Return a context for sampling while the trainer changes the policy, up to the next weight sync.

        The engine's weights are then nowhere else: a server that loses them is out until that sync, and without any
        server left a stream raises an EngineError. Not collective.
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
