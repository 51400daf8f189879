"""Timelines of chosen steps: our phases, engines and verifiers, with torch's operators and kernels.

A failing profiler, as on a full disk, costs the timeline and never the run.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from megatron_prime.config.tables.observability.profile import ProfileConfig
from megatron_prime.observability.activity import Recording, recorded
from megatron_prime.observability.durable import make_private
from megatron_prime.observability.timeline import write_timeline
from megatron_prime.parallel.platform import Platform


class StepProfiler:
    """Captures steps of a run on this rank.

    Args:
        config: steps and ranks to capture.
        folder: of the timelines, run_dir/profile.
        rank: this process.
        platform: the device, whose memory is captured on a GPU.
        warn: receives a warning in one line.
    """

    def __init__(
        self, config: ProfileConfig, folder: Path, rank: int, platform: Platform, warn: Callable[[str], None]
    ) -> None:
        self._steps = frozenset(config.steps) if rank in config.ranks else frozenset[int]()
        self._with_operators = config.operators
        self._folder = folder
        self._rank = rank
        self._platform = platform
        self._warn = warn

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Capture the block if this step, numbered from 1, is to be captured; a step that raises has no timeline."""
        if number not in self._steps:
            yield
            return
        name = f"step-{number:08d}-rank-{self._rank}"
        profiler = self._started(number)
        try:
            with recorded() as record, torch.profiler.record_function(f"step {number}"):
                yield
        except BaseException:
            self._stopped(profiler, None)
            raise
        self._write(name, record, self._stopped(profiler, self._folder / f"{name}-memory.pickle"))

    def _started(self, number: int) -> Any:  # noqa: ANN401 - its class is private in some versions
        if not self._with_operators:
            return None
        self._platform.start_memory_history()
        activities = [torch.profiler.ProfilerActivity.CPU]
        if self._platform.is_cuda:
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        profiler = torch.profiler.profile(activities=activities)
        try:
            profiler.start()
        except RuntimeError as error:  # another profiler, such as Nsight, may hold the device
            self._warn(f"torch.profiler does not start for step {number}: {_first_line(error)}")
            return None
        return profiler

    def _stopped(self, profiler: Any, memory_file: Path | None) -> Any:  # noqa: ANN401
        """End the capture; return the profiler, or None if it failed."""
        try:
            if memory_file is not None and self._platform.is_cuda and self._with_operators:
                make_private(self._folder)
            self._platform.stop_memory_history(memory_file)
        except (OSError, RuntimeError) as error:
            self._warn(f"the memory of the captured step cannot be written: {_first_line(error)}")
        if profiler is None:
            return None
        try:
            profiler.stop()
        except RuntimeError as error:
            self._warn(f"torch.profiler failed: {_first_line(error)}")
            return None
        return profiler

    def _write(self, name: str, record: Recording, profiler: Any) -> None:  # noqa: ANN401
        path, torch_trace = self._folder / f"{name}.json.gz", self._folder / f".{name}.torch.json"
        try:
            make_private(self._folder)
            try:
                if profiler is None:
                    write_timeline(path, record, self._rank)
                else:
                    profiler.export_chrome_trace(str(torch_trace))
                    write_timeline(path, record, self._rank, torch_trace)
            finally:
                # torch writes another temporary file first, and leaves it behind when the disk is full.
                for left in self._folder.glob(f"{torch_trace.name}*"):
                    left.unlink()
        except (OSError, RuntimeError, ValueError) as error:
            self._warn(f"no timeline of this step (training continues): {_first_line(error)}")


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
