"""A control group for one sandbox, which limits its memory over all processes; rlimits apply to each process alone."""

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import Self

ROOT = Path("/sys/fs/cgroup")
# The first name is that of cgroup version 2, the second that of version 1.
LIMIT_FILES = {"memory": ("memory.max", "memory.limit_in_bytes"), "pids": ("pids.max",)}
PREFIX = "megatron_prime"
REMOVE_TIMEOUT_S = 2.0


class ControlGroup:
    """A context manager that creates control groups on entry, and on exit kills their processes and removes them.

    If this process may not create groups it does nothing; the rlimits and the deadline still apply.
    """

    def __init__(self, memory_bytes: int, max_processes: int, root: Path = ROOT) -> None:
        self._limits = {"memory": memory_bytes, "pids": max_processes}
        self._root = root
        self.folders: list[Path] = []
        """Folders of the groups; empty if none could be created."""

    def __enter__(self) -> Self:
        for controller, limit in self._limits.items():
            parent = parent_group(controller, self._root)
            if parent is not None:
                self._create(parent, controller, limit)
        return self

    def __exit__(self, *exception: object) -> None:
        for folder in self.folders:
            _remove(folder)
        self.folders.clear()

    def enter(self) -> None:
        """Move the calling process into the groups; to be called between fork and exec."""
        for folder in self.folders:
            # The kernel takes 0 as the process that writes.
            (folder / "cgroup.procs").write_text("0")

    def _create(self, parent: Path, controller: str, limit: int) -> None:
        # The pid in the name lets `remove_stale_groups` find the groups of processes that no longer exist.
        folder = parent / f"{PREFIX}_{os.getpid()}_{controller}"
        try:
            folder.mkdir(exist_ok=True)
            file = next((folder / name for name in LIMIT_FILES[controller] if (folder / name).exists()), None)
            # Without the file, the parent does not delegate this controller to its children.
            if file is None:
                folder.rmdir()
                return
            # The two processes of bwrap are in the group too.
            file.write_text(str(limit + 2 if controller == "pids" else limit))
        except OSError:
            with contextlib.suppress(OSError):
                folder.rmdir()
            return
        self.folders.append(folder)


def remove_stale_groups(root: Path = ROOT) -> None:
    """Remove the groups of processes that were killed before they could remove them; groups in use are kept."""
    for controller in LIMIT_FILES:
        parent = parent_group(controller, root)
        for folder in parent.glob(f"{PREFIX}_*_{controller}") if parent is not None else ():
            pid = folder.name.split("_")[-2]
            if not Path("/proc", pid).exists():
                with contextlib.suppress(OSError):
                    folder.rmdir()


def parent_group(controller: str, root: Path = ROOT) -> Path | None:
    """Return this process's own group of a controller, or None if it cannot be written to.

    In cgroup version 1 each controller has its own hierarchy; in version 2 all share one.
    """
    own = Path("/proc/self/cgroup")
    lines = own.read_text().splitlines() if own.exists() else []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            base = root / controllers if (root / controllers).exists() else root / controller
        elif not controllers and (root / "cgroup.controllers").exists():  # version 2
            base = root
        else:
            continue
        group = base / path.lstrip("/")
        # In a container, /proc may show the path on the host, while only the container's own subtree is mounted.
        group = group if group.exists() else base
        return group if os.access(group, os.W_OK) else None
    return None


def _remove(folder: Path) -> None:
    deadline = time.monotonic() + REMOVE_TIMEOUT_S
    # A group can be removed only when its killed processes have ended, which takes a moment.
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
