"""The rollout log of a run: a folder with one file per logged step, of limited size."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from megatron_prime.observability.durable import make_private, replace_file
from megatron_prime.observability.rollout_log.reader import logged_steps
from megatron_prime.observability.rollout_log.schema import FileInfo, step_path
from megatron_prime.observability.rollout_log.writer import encode_rollouts

MIB = 1 << 20


class RolloutLog:
    """Writes the files of steps to a folder. Only rank 0 of a run creates one.

    Args:
        folder: created with the first file.
        resume_step: first step that this attempt of the run may log. The files of later steps were written by an
            earlier attempt after its last checkpoint, and are removed, as such records of metrics.jsonl are.
        max_mib: size of all files together, beyond which the oldest are removed; None for no limit.
        fence: entered around each change of the folder; raises when another attempt of the run has taken over.
    """

    def __init__(
        self,
        folder: Path,
        resume_step: int = 0,
        max_mib: int | None = None,
        fence: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.folder = folder
        self._fence = fence
        self._max_bytes = None if max_mib is None else max_mib * MIB
        for step, path in logged_steps(folder).items():
            if step >= resume_step:
                path.unlink()
        if folder.is_dir():
            for path in folder.glob(".step-*.tmp"):  # A process was killed while it wrote.
                path.unlink(missing_ok=True)
        self._sizes = {path: path.stat().st_size for path in logged_steps(folder).values()}
        """Size of each file, ascending by step."""

    def log(self, info: FileInfo, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write the file of the step `info.step`; steps must increase. It is on disk when this returns.

        Raises:
            OSError: the file cannot be written; the log stays without this step.
        """
        path = step_path(self.folder, info.step)
        assert not self._sizes or path > max(self._sizes), f"{path} was written after {max(self._sizes)}"
        content = encode_rollouts(
            info, rows
        )  # the longest part, which the fence of other files needn't wait for
        with self._fence():
            make_private(self.folder)
            replace_file(path, content)
            self._sizes[path] = len(content)
            self._remove_oldest()

    def _remove_oldest(self) -> None:
        if self._max_bytes is None:
            return
        while len(self._sizes) > 1 and sum(self._sizes.values()) > self._max_bytes:
            oldest = next(iter(self._sizes))
            oldest.unlink(missing_ok=True)  # A user may have removed it.
            del self._sizes[oldest]
