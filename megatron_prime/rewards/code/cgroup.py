"""A cgroup for one box, where this process may make one: it bounds memory over processes, which rlimits do not."""

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import Self

ROOT = Path("/sys/fs/cgroup")
LIMIT_FILES = {"memory": ("memory.max", "memory.limit_in_bytes"), "pids": ("pids.max",)}
PREFIX = "megatron_prime"
REMOVE_TIMEOUT_S = 2.0


class ControlGroup:
    """A context: groups are made on entry and removed, with whatever is still in them killed, on exit.

    Without the right to make groups it does nothing: the rlimits and the deadline hold all the same.
    """

    def __init__(self, memory_bytes: int, max_processes: int, root: Path = ROOT) -> None:
        self._limits = {"memory": memory_bytes, "pids": max_processes}
        self._root = root
        self.folders: list[Path] = []
        """Where the groups are; empty when there are none."""

    def __enter__(self) -> Self:
        for controller, limit in self._limits.items():
            parent = parent_group(controller, self._root)
            if parent is not None:
                self._make(parent, controller, limit)
        return self

    def __exit__(self, *exception: object) -> None:
        for folder in self.folders:
            _remove(folder)
        self.folders.clear()

    def enter(self) -> None:
        """Put the calling process into the groups; for use between fork and exec."""
        for folder in self.folders:
            (folder / "cgroup.procs").write_text("0")

    def _make(self, parent: Path, controller: str, limit: int) -> None:
        folder = parent / f"{PREFIX}_{os.getpid()}_{controller}"
        try:
            folder.mkdir(exist_ok=True)
            file = next((folder / name for name in LIMIT_FILES[controller] if (folder / name).exists()), None)
            if file is None:
                folder.rmdir()
                return
            # bwrap's two processes are in the group too.
            file.write_text(str(limit + 2 if controller == "pids" else limit))
        except OSError:
            with contextlib.suppress(OSError):
                folder.rmdir()
            return
        self.folders.append(folder)


def sweep(root: Path = ROOT) -> None:
    """Remove the groups of processes that were killed before they could; one with a process inside stays."""
    for controller in LIMIT_FILES:
        parent = parent_group(controller, root)
        for folder in parent.glob(f"{PREFIX}_*_{controller}") if parent is not None else ():
            pid = folder.name.split("_")[-2]
            if not Path("/proc", pid).exists():
                with contextlib.suppress(OSError):
                    folder.rmdir()


def parent_group(controller: str, root: Path = ROOT) -> Path | None:
    """This process's own group of a controller, in either version of cgroups; None when it cannot be written to."""
    own = Path("/proc/self/cgroup")
    lines = own.read_text().splitlines() if own.exists() else []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            base = root / controllers if (root / controllers).exists() else root / controller
        elif not controllers and (root / "cgroup.controllers").exists():
            base = root
        else:
            continue
        group = base / path.lstrip("/")
        group = group if group.exists() else base
        return group if os.access(group, os.W_OK) else None
    return None


def _remove(folder: Path) -> None:
    deadline = time.monotonic() + REMOVE_TIMEOUT_S
    while True:
        with contextlib.suppress(OSError, ValueError):
            for pid in map(int, (folder / "cgroup.procs").read_text().split()):
                os.kill(pid, signal.SIGKILL)
        try:
            folder.rmdir()
            return
        except FileNotFoundError:
            return
        except OSError:
            if time.monotonic() > deadline:
                return
            time.sleep(0.002)
