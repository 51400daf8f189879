"""The prompts that SGLang servers sample: a `GroupStream` whose work goes on between its calls."""

import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError

from megatron_prime.engines.requests import check_prompt
from megatron_prime.engines.sglang.driver import Driver
from megatron_prime.engines.sglang.generation import Generation, GenerationSettings
from megatron_prime.rollout.engine import EngineError
from megatron_prime.types import Prompt, Rollout

_CLOSE_S = 60.0
"""Deadline for the abort of all requests after an error."""


class SGLangGroupStream:
    """See `rollout.engine.GroupStream`.

    Args:
        driver: of the engine.
        begin: makes the generation, on the driver's loop.
        settings: of the generation.
    """

    is_batched = False

    def __init__(self, driver: Driver, begin: Callable[[], Generation], settings: GenerationSettings) -> None:
        self._driver = driver
        self._settings = settings
        self._num_in_flight = 0
        self._generation: Generation | None = None
        """On the driver alone."""

        async def make() -> None:
            self._generation = begin()

        driver.run(make)

    @property
    def num_in_flight(self) -> int:
        """See `GroupStream.num_in_flight`."""
        return self._num_in_flight

    def submit(self, prompts: Sequence[Prompt]) -> None:
        """See `GroupStream.submit`."""
        for prompt in prompts:
            check_prompt(prompt, self._settings.params, self._settings.dialogues.limits)
        self._num_in_flight += len(prompts)

        async def submit() -> None:
            self._running().submit(prompts)

        # The other ranks need not wait for it: they meet in `finished`.
        if self._driver.loop_thread is not None:
            self._driver.loop_thread.submit(submit()).result()

    def finished(self, wait_s: float | None) -> list[tuple[int, list[Rollout]]]:
        """See `GroupStream.finished`."""
        groups = self._driver.run(lambda: self._running().finished(wait_s))
        self._num_in_flight -= len(groups)
        return groups

    def close(self) -> Generation | None:
        """Abort what is unfinished, and wait until all servers are up. Collective; the driver gets the generation."""
        self._driver.run(lambda: self._running().close())
        return self._generation

    def give_up(self) -> None:
        """Abort what is unfinished after an error, which the other ranks may not have. Not collective."""
        if self._driver.loop_thread is not None and self._generation is not None:
            # A closed engine has aborted everything already, and the error that led here says more than its refusal.
            with contextlib.suppress(EngineError, CancelledError):
                self._driver.loop_thread.submit(self._generation.close(is_orderly=False)).result(_CLOSE_S)

    def _running(self) -> Generation:
        assert self._generation is not None, "coroutines run on the driver"
        return self._generation
