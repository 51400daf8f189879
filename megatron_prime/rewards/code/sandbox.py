"""Runs a Python program that nobody trusts: bubblewrap, a uid of its own, rlimits, seccomp, a cgroup where allowed.

    run(code, stdin) -> bwrap (new pid, net, ipc, uts, mount namespaces) -> launcher (rlimits, uid) -> code

The box holds a Python installation and the system's libraries, read-only, an empty /tmp of limited size, and the code.
No network, no /proc, no other process, no environment. Whatever the code starts ends with it. Docs: docs/rewards.md.
"""

import contextlib
import json
import math
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from megatron_prime.config.tables.reward import CodeConfig
from megatron_prime.rewards.code import launcher
from megatron_prime.rewards.code.cgroup import ControlGroup, sweep
from megatron_prime.rewards.code.seccomp import program

HOW_TO_INSTALL = (
    "install bubblewrap (`apt-get install bubblewrap`, `dnf install bubblewrap`, or put bwrap on PATH); where that "
    "cannot be, reward.code.sandbox = 'none-i-accept-the-risk' runs model-written code with the rights of this user"
)
NEEDS = (
    "bubblewrap needs user namespaces or CAP_SYS_ADMIN: a container must be started with them (docker run --cap-add "
    "SYS_ADMIN --security-opt seccomp=unconfined, for one)"
)
SYSTEM_FOLDERS = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64")
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom", "/dev/full")
FIRST_UID = 1_000_000_000
"""As root, a box's uid is this plus the worker's pid: the process limit counts by uid, and boxes must not share one."""
MAX_OPEN_FILES = 64
MAX_ERROR_BYTES = 2000
STARTUP_TIMEOUT_S = 15.0
"""For the box to come up; not the code's time."""
NUM_ATTEMPTS = 2
"""For a sandbox that does not come up, on a machine out of processes for a moment, say."""

LAUNCHER = Path(launcher.__file__).read_text(encoding="utf-8")


class SandboxError(RuntimeError):
    """The sandbox itself failed; nothing is known about the code."""


@dataclass(frozen=True, slots=True)
class Completed:
    """What a program did, as far as anyone outside can tell."""

    exit_code: int | None
    """None when it was killed at its deadline or for its output; negative for a signal."""
    stdout: bytes
    """At most reward.code.max_output_mib; empty when there was more."""
    detail: str = ""
    """Why there is no exit code; otherwise the end of standard error."""


class Sandbox:
    """Runs programs one at a time."""

    def __init__(self, config: CodeConfig) -> None:
        """Look for bubblewrap and the interpreter.

        Raises:
            ValueError: bubblewrap is asked for and not there.
        """
        self._config = config
        self._bwrap = None if config.sandbox == "none-i-accept-the-risk" else shutil.which("bwrap")
        if self._bwrap is None and config.sandbox == "bubblewrap":
            raise ValueError(f"reward.code.sandbox = 'bubblewrap', but there is no bwrap: {HOW_TO_INSTALL}")
        if self._bwrap is not None:
            sweep()
        # Ours without its environment; one that is named keeps its own, which hangs on the unresolved path.
        self._python = config.python.absolute() if config.python else Path(os.path.realpath(sys.executable))

    def run(self, code: str, stdin: bytes, timeout_s: float, call: str | None = None) -> Completed:
        """Run `code` with `stdin`, or call its function `call` with the JSON arguments that `stdin` holds.

        Raises:
            SandboxError: the box did not come up, twice.
        """
        for attempt in range(NUM_ATTEMPTS):
            try:
                return self._run_once(code, stdin, timeout_s, call)
            except (SandboxError, OSError, subprocess.SubprocessError) as error:
                if attempt == NUM_ATTEMPTS - 1:
                    raise SandboxError(f"the sandbox does not come up: {error}; {NEEDS}") from error
        raise AssertionError("unreachable")

    def _run_once(self, code: str, stdin: bytes, timeout_s: float, call: str | None) -> Completed:
        with contextlib.ExitStack() as stack:
            group = None
            if self._bwrap is not None:
                group = stack.enter_context(
                    ControlGroup(self._config.memory_mib << 20, self._config.max_processes)
                )
            command, descriptors = self._command(stack, code, math.ceil(timeout_s) + 1, call)
            errors = stack.enter_context(tempfile.TemporaryFile())
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=_environment(),
                pass_fds=descriptors,
                start_new_session=self._bwrap is None,
                preexec_fn=group.enter if group is not None else None,  # the pool's workers have one thread
            )
            stack.callback(self._end, process)
            stdout, detail = _communicate(process, stdin, timeout_s, self._config.max_output_mib << 20)
            if not detail:
                try:
                    process.wait(timeout=1.0)
                except subprocess.TimeoutExpired:
                    detail = "closed its output and went on"
            if detail:
                self._end(process)
            errors.seek(max(0, os.fstat(errors.fileno()).st_size - MAX_ERROR_BYTES))
            reason = errors.read(MAX_ERROR_BYTES).decode(errors="replace").strip()
            if not stdout.startswith(launcher.READY):
                raise SandboxError(reason or detail or f"it ended with exit code {process.returncode}")
            if detail:
                return Completed(None, b"", detail)
            return Completed(process.returncode, stdout[len(launcher.READY) :], reason)

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        """Kill what is left. The kernel ends everything in a box with its first process."""
        if self._bwrap is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _command(
        self, stack: contextlib.ExitStack, code: str, cpu_seconds: int, call: str | None
    ) -> tuple[list[str], list[int]]:
        """The command, and the descriptors that it inherits."""
        settings = {"rlimits": self._rlimits(cpu_seconds), "uid": None, "call": call}
        python = [str(self._python), "-s", "-P", "-B", "-X", "utf8", "-c", LAUNCHER]  # not -I: the hash seed
        if self._bwrap is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
            path = Path(folder) / "solution.py"
            path.write_text(code, encoding="utf-8", errors="replace")
            return [*python, json.dumps(settings | {"code": str(path), "folder": folder})], []
        settings |= {"uid": _box_uid(), "code": "/box/solution.py", "folder": "/tmp"}
        filter_fd = stack.enter_context(_readable(program()))
        code_fd = stack.enter_context(_readable(code.encode(errors="replace")))
        box = [self._bwrap, *self._box_arguments(), "--seccomp", str(filter_fd)]
        box += [
            "--perms",
            "0444",
            "--ro-bind-data",
            str(code_fd),
            "/box/solution.py",
            "--remount-ro",
            "/",
            "--",
        ]
        return [*box, *python, json.dumps(settings)], [filter_fd, code_fd]

    def _box_arguments(self) -> list[str]:
        arguments = ["--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--die-with-parent"]
        arguments += ["--new-session", "--hostname", "box", "--chdir", "/"]
        if os.geteuid() == 0:
            # The launcher drops root itself: in a user namespace of its own, root outside has no process limit.
            arguments += ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
        else:
            arguments += ["--unshare-user"]
        for folder in map(Path, SYSTEM_FOLDERS):
            if folder.is_symlink():
                arguments += ["--symlink", str(folder.readlink()), str(folder)]
            elif folder.is_dir():
                arguments += ["--ro-bind", str(folder), str(folder)]
        arguments += ["--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"]
        size = str(self._config.max_disk_mib << 20)
        arguments += ["--perms", "1777", "--size", size, "--tmpfs", "/tmp"]
        readable = [
            *_python_folders(self._python),
            *(str(path.absolute()) for path in self._config.readable_paths),
        ]
        for folder in _parents([*readable, *DEVICES, "/box/solution.py"]):
            arguments += ["--perms", "0755", "--dir", folder]  # by default for root alone
        for path in readable:
            arguments += ["--ro-bind", path, path]
        for device in DEVICES:
            arguments += ["--dev-bind", device, device]
        return arguments

    def _rlimits(self, cpu_seconds: int) -> dict[str, int]:
        config = self._config
        limits = {
            "RLIMIT_CPU": cpu_seconds,
            "RLIMIT_AS": config.memory_mib << 20,
            "RLIMIT_FSIZE": config.max_disk_mib << 20,
            "RLIMIT_NOFILE": MAX_OPEN_FILES,
            "RLIMIT_CORE": 0,
        }
        if self._bwrap is not None:  # outside a box, the user's other processes count
            limits["RLIMIT_NPROC"] = config.max_processes
        return limits


def _communicate(
    process: subprocess.Popen[bytes], stdin: bytes, timeout_s: float, max_bytes: int
) -> tuple[bytes, str]:
    """Feed and read until the output ends; (output, "") or (what there was, why it was given up)."""
    assert process.stdin is not None
    assert process.stdout is not None
    deadline = time.monotonic() + STARTUP_TIMEOUT_S
    output = bytearray()
    rest = memoryview(stdin)
    os.set_blocking(process.stdin.fileno(), False)
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdin, selectors.EVENT_WRITE)
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            ready = selector.select(max(0.0, deadline - time.monotonic()))
            if not ready or time.monotonic() > deadline:
                return bytes(output), f"it ran past {timeout_s if output else STARTUP_TIMEOUT_S:g} s"
            for key, _ in ready:
                if key.fileobj is process.stdin:
                    rest = _feed(process.stdin.fileno(), rest)
                    if not rest:
                        selector.unregister(process.stdin)
                        process.stdin.close()
                    continue
                chunk = os.read(process.stdout.fileno(), 1 << 16)
                if not chunk:
                    return bytes(output), ""
                if not output:
                    deadline = time.monotonic() + timeout_s  # the box is up: what follows is the code's time
                output += chunk
                if len(output) > max_bytes:
                    return bytes(output), f"it printed more than {max_bytes >> 20} MiB"


def _feed(descriptor: int, rest: memoryview) -> memoryview:
    """Write what the pipe takes; nothing is left when the reader is gone."""
    try:
        return rest[os.write(descriptor, rest[: 1 << 16]) :]
    except BlockingIOError:
        return rest
    except BrokenPipeError:
        return rest[:0]


@contextlib.contextmanager
def _readable(data: bytes) -> Iterator[int]:
    """A descriptor from which `data` can be read."""
    descriptor = os.memfd_create("sandbox", os.MFD_CLOEXEC)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        os.lseek(descriptor, 0, os.SEEK_SET)
        yield descriptor
    finally:
        os.close(descriptor)


def _box_uid() -> int | None:
    """The uid that a box of this process runs as; None when not root, where the box has this user's."""
    if os.geteuid() != 0:
        return None
    wanted = FIRST_UID + os.getpid()
    for line in Path("/proc/self/uid_map").read_text().splitlines():
        first, _, count = map(int, line.split())
        if first <= wanted < first + count:
            return wanted
    return 65534  # a container without that many uids: nobody


def _parents(paths: list[str]) -> list[str]:
    """Folders above `paths`, the upper ones first, those of the system and the root left out."""
    folders = {str(parent) for path in paths for parent in Path(path).parents}
    return sorted(folder for folder in folders - {"/"} if not folder.startswith(SYSTEM_FOLDERS))


@cache
def _python_folders(python: Path) -> tuple[str, ...]:
    """The folders that an interpreter needs, those of the system left out."""
    query = "import sys; print(sys.base_prefix, sys.prefix, sep='\\n')"
    prefixes = subprocess.run(
        [str(python), "-I", "-c", query], capture_output=True, text=True, check=True
    ).stdout
    return tuple(
        sorted(
            {prefix for prefix in prefixes.split("\n") if prefix and not prefix.startswith("/usr")} - {"/"}
        )
    )


def _environment() -> dict[str, str]:
    one_thread = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    return {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": "/tmp", "PYTHONHASHSEED": "0", **one_thread}
