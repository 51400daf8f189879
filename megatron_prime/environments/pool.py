"""Environments in worker processes that can be killed, so that a deadline holds whatever an environment does.

A worker hosts many episodes and answers one call at a time; `slot` has the way to it. If it has to be killed or dies,
the episodes that it hosted are repeated in another one, reset and all responses, when they are used again.
"""

import itertools
import json
import threading
from typing import Any, Self

from megatron_prime.config.tables.environment import EnvironmentConfig
from megatron_prime.config.tables.reward import CodeConfig
from megatron_prime.environments.slot import PooledEpisode, Slot, Tally
from megatron_prime.rollout.episode import EpisodeError


class EnvironmentPool:
    """Runs the environments of episodes in `environment.num_workers` processes; close it, or use it in a `with`.

    Episodes may be used from any event loop, and none of their calls blocks it.
    """

    def __init__(self, config: EnvironmentConfig, code: CodeConfig | None = None) -> None:
        """Start the processes and wait until they are ready.

        Args:
            config: The environment.
            code: Limits of the sandbox of the tool `python`.

        Raises:
            ValueError: a process does not start, with the reason; or the environment has no valid tools.
        """
        options = config.model_dump(mode="json", include={"name", "settings", "tools", "timeout_s"})
        options["code"] = (code or CodeConfig()).model_dump(mode="json")
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        tally = Tally(config.name)
        self._slots = [Slot(config, json.dumps(options), tally) for _ in range(config.num_workers)]
        self._tally = tally
        try:
            descriptions = [slot.description.result() for slot in self._slots]
        except BaseException as error:
            self.close()
            if not isinstance(error, EpisodeError):
                raise
            raise ValueError(f"environment.name = {config.name!r} does not start: {error}") from error
        self.tools: tuple[dict[str, Any], ...] = tuple(descriptions[0]["tools"])
        """Schemas of the tools, as chat templates take them."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def worker_pids(self) -> tuple[int, ...]:
        """Process ids of the workers that are running."""
        return tuple(slot.pid for slot in self._slots if slot.pid is not None)

    @property
    def counts(self) -> dict[str, float]:
        """Totals since the start: episodes, calls, call_s (seconds of calls), restarts, and failed_KIND."""
        return self._tally.as_dict()

    def episode(self) -> PooledEpisode:
        """Return a new episode, in the worker with the fewest."""
        with self._lock:
            slot = min(self._slots, key=lambda each: len(each.episodes))
            episode = PooledEpisode(next(self._numbers), slot)
            slot.episodes.add(episode)
        self._tally.add("episodes")
        return episode

    def close(self) -> None:
        """End all processes at once; calls that wait fail. May be called twice."""
        for slot in self._slots:
            slot.close()
        for slot in self._slots:
            slot.wait()
