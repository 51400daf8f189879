"""The engine of a run that replays logged rollouts: it takes every weight sync and samples nothing."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import NoReturn

from megatron_prime.engines.parts import EngineParts
from megatron_prime.rollout.engine import NO_WEIGHTS, CheckpointEngine, EngineError
from megatron_prime.rollout.episode import Environments
from megatron_prime.types import SamplingParams


class ReplayEngine(CheckpointEngine):
    """An engine without a model."""

    def __init__(self) -> None:
        self.version = NO_WEIGHTS
        """The version of the last weight sync."""

    @property
    def policy_version(self) -> int:
        """See `Engine.policy_version`."""
        return self.version

    def stream(
        self,
        params: SamplingParams,
        group_size: int,
        stream_key: int,
        environments: Environments | None = None,
    ) -> NoReturn:
        """Raise an EngineError."""
        del params, group_size, stream_key, environments
        _refuse()

    def load_from_hf(self, model_path: Path, policy_version: int = 0) -> None:
        """Raise an EngineError."""
        del model_path, policy_version
        _refuse()

    def while_training(self) -> AbstractContextManager[None]:
        """Do nothing: there are no weights."""
        return nullcontext()

    def release_memory(self) -> None:
        """Do nothing: there is no memory."""

    def close(self) -> None:
        """Do nothing."""


class _ReplaySync:
    """A weight sync that transfers nothing."""

    def __init__(self, engine: ReplayEngine) -> None:
        self._engine = engine

    def push(self, policy_version: int) -> dict[str, float]:
        self._engine.version = policy_version
        return {}

    def resync(self, server: int) -> None:
        del server
        _refuse()

    def close(self) -> None: ...


def replay_parts() -> EngineParts:
    """Return the engine of a replay and its weight sync."""
    engine = ReplayEngine()
    return EngineParts(engine, lambda _: _ReplaySync(engine))


def _refuse() -> NoReturn:
    raise EngineError("a run that replays logged rollouts cannot sample")
