"""A sandbox for untrusted Python programs: bubblewrap, a separate uid, rlimits, seccomp, and a cgroup where permitted.

    run(code, stdin) -> bwrap (new pid, net, ipc, uts, mount namespaces) -> launcher (rlimits, uid) -> code

The sandbox contains a Python installation and the system's libraries (read-only), an empty /tmp of limited size, and
the code. It has no network, no /proc, no other processes and no environment variables. All processes that the code
starts end with it. See docs/rewards.md.
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
from megatron_prime.rewards.code.cgroup import ControlGroup, remove_stale_groups
from megatron_prime.rewards.code.orphans import adopted_orphans, reap_orphan
from megatron_prime.rewards.code.prelude import prelude_for
from megatron_prime.rewards.code.seccomp import program

HOW_TO_INSTALL = (
    "install bubblewrap (`apt-get install bubblewrap`, `dnf install bubblewrap`, or put bwrap on PATH); where that is "
    "impossible, reward.code.sandbox = 'none-i-accept-the-risk' runs model-written code with the rights of this user"
)
NEEDS = (
    "bubblewrap needs user namespaces or CAP_SYS_ADMIN: start a container with them (for example docker run --cap-add "
    "SYS_ADMIN --security-opt seccomp=unconfined)"
)
SYSTEM_FOLDERS = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64")
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom", "/dev/full")
FIRST_UID = 1_000_000_000
"""As root, a sandbox runs under this uid plus the worker's pid.

RLIMIT_NPROC counts the processes of a uid, so that sandboxes that run at the same time must not share one.
"""
MAX_OPEN_FILES = 64
MAX_ERROR_BYTES = 2000
"""Bytes of the end of standard error that are kept for messages."""
STARTUP_TIMEOUT_S = 15.0
"""Deadline for the sandbox to start; the time limit of the code begins afterwards."""
MAX_STACK_BYTES = 120 << 20
"""Size to which the stack may grow, because recursion through a cache or a sort needs it; 8 MiB are usual. The kernel
keeps 128 MiB free for it."""
NUM_ATTEMPTS = 2
"""Attempts to start a sandbox: a start may fail for a moment, for example when the machine is out of processes."""

LAUNCHER = Path(launcher.__file__).read_text(encoding="utf-8")


class SandboxError(RuntimeError):
    """The sandbox itself failed, so that nothing is known about the code."""


@dataclass(frozen=True, slots=True)
class Completed:
    """The result of running a program."""

    exit_code: int | None
    """Exit code, negative for a signal; None if the program was killed at its deadline or for too much output."""
    stdout: bytes
    """Standard output, at most reward.code.max_output_mib; empty if there is no exit code."""
    detail: str = ""
    """Reason why there is no exit code, otherwise the end of standard error."""
    seconds: float = 0.0
    """Time that the program took, without that of starting the sandbox."""


class Sandbox:
    """A sandbox that runs one program at a time."""

    def __init__(self, config: CodeConfig) -> None:
        """Find bubblewrap and the interpreter.

        Raises:
            ValueError: If reward.code.sandbox is "bubblewrap" and bwrap is not installed.
        """
        self._config = config
        self._bwrap = None if config.sandbox == "none-i-accept-the-risk" else shutil.which("bwrap")
        if self._bwrap is None and config.sandbox == "bubblewrap":
            raise ValueError(
                f"reward.code.sandbox = 'bubblewrap', but bwrap is not installed: {HOW_TO_INSTALL}"
            )
        if self._bwrap is not None:
            remove_stale_groups()
        # Resolving symbolic links leaves the virtual environment of this process, whose packages the code must not
        # see. A configured interpreter is not resolved, so that it keeps the packages of its own environment.
        self._python = config.python.absolute() if config.python else Path(os.path.realpath(sys.executable))

    def run(self, code: str, stdin: bytes, timeout_s: float, call: str | None = None) -> Completed:
        """Run a program, or call one of its functions.

        Args:
            code: Python source text.
            stdin: Standard input, or with `call` one line with the JSON list of arguments.
            timeout_s: Time limit in seconds.
            call: Name of a function to call; standard output is then the JSON of its result.

        Raises:
            SandboxError: If the sandbox failed to start NUM_ATTEMPTS times.
        """
        for attempt in range(NUM_ATTEMPTS):
            try:
                return self._run_once(code, stdin, timeout_s, call)
            except (SandboxError, OSError, subprocess.SubprocessError) as error:
                if attempt == NUM_ATTEMPTS - 1:
                    raise SandboxError(f"the sandbox does not start: {error}; {NEEDS}") from error
        raise AssertionError("unreachable")

    def _run_once(self, code: str, stdin: bytes, timeout_s: float, call: str | None) -> Completed:
        with contextlib.ExitStack() as stack:
            group = None
            if self._bwrap is not None:
                group = stack.enter_context(
                    ControlGroup(self._config.memory_mib << 20, self._config.max_processes)
                )
            # CPU time is limited to a second more than the wall clock, as a second line of defence.
            command, descriptors = self._command(stack, code, math.ceil(timeout_s) + 1, call)
            # A file and not a pipe: nobody has to read it while the program runs, and RLIMIT_FSIZE bounds it.
            errors = stack.enter_context(tempfile.TemporaryFile())
            stack.enter_context(adopted_orphans())
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=_environment(),
                pass_fds=descriptors,
                # Without a sandbox, `_end` kills the process group instead of the sandbox's first process.
                start_new_session=self._bwrap is None,
                # preexec_fn is unsafe with several threads, but a worker of the pool has only one.
                preexec_fn=group.enter if group is not None else None,
            )
            # Before the process is ended, which is the parent of those that are left.
            stack.callback(self._reap_orphans, process, descriptors)
            stack.callback(self._end, process)
            stdout, detail, started = _communicate(
                process, stdin, timeout_s, self._config.max_output_mib << 20
            )
            if not detail:
                # A program may close its output and keep running.
                try:
                    process.wait(timeout=1.0)
                except subprocess.TimeoutExpired:
                    detail = "it closed its output and did not exit"
            if detail:
                self._end(process)
            errors.seek(max(0, os.fstat(errors.fileno()).st_size - MAX_ERROR_BYTES))
            reason = errors.read(MAX_ERROR_BYTES).decode(errors="replace").strip()
            # Without READY the launcher never ran the code, so that the failure says nothing about it.
            if not stdout.startswith(launcher.READY):
                raise SandboxError(reason or detail or f"it ended with exit code {process.returncode}")
            seconds = time.monotonic() - started
            if detail:
                return Completed(None, b"", detail, seconds)
            return Completed(process.returncode, stdout[len(launcher.READY) :], reason, seconds)

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        """Kill all processes that are left; in a sandbox the kernel kills them with the first process."""
        if self._bwrap is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _reap_orphans(self, process: subprocess.Popen[bytes], descriptors: list[int]) -> None:
        """Wait for the processes whose parent has ended; a container's first process may never do it."""
        if self._bwrap is None:
            reap_orphan(-process.pid)  # all of the group
            return
        info = os.pread(descriptors[-1], 1 << 12, 0)
        # bwrap ends before the sandbox's first process, and writes its id at the start.
        pid = json.loads(info)["child-pid"] if info else 0
        if pid > 1:
            reap_orphan(pid)

    def _command(
        self, stack: contextlib.ExitStack, code: str, cpu_seconds: int, call: str | None
    ) -> tuple[list[str], list[int]]:
        """Return the command and the file descriptors that it inherits."""
        settings = {
            "rlimits": self._rlimits(cpu_seconds),
            "uid": None,
            "call": call,
            "prelude": prelude_for(code),
        }
        # Not -I, which would ignore PYTHONHASHSEED: runs must be repeatable.
        python = [str(self._python), "-s", "-P", "-B", "-X", "utf8", "-c", LAUNCHER]
        if self._bwrap is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
            path = Path(folder) / "solution.py"
            path.write_text(code, encoding="utf-8", errors="replace")
            return [*python, json.dumps(settings | {"code": str(path), "folder": folder})], []
        settings |= {"uid": _sandbox_uid(), "code": "/box/solution.py", "folder": "/tmp"}
        # bwrap reads filter and code from descriptors of memory files, so that nothing has to be cleaned up on disk.
        filter_fd = stack.enter_context(_readable(program()))
        code_fd = stack.enter_context(_readable(code.encode(errors="replace")))
        info_fd = stack.enter_context(_readable(b""))
        box = [self._bwrap, *self._bwrap_arguments(), "--seccomp", str(filter_fd), "--info-fd", str(info_fd)]
        # The launcher reads the code after it has dropped its uid, so every user may read it. Remounting the root
        # makes everything but /tmp read-only, and has to come after the last file that bwrap creates.
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
        return [*box, *python, json.dumps(settings)], [filter_fd, code_fd, info_fd]

    def _bwrap_arguments(self) -> list[str]:
        arguments = ["--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--die-with-parent"]
        arguments += ["--new-session", "--hostname", "box", "--chdir", "/"]
        if os.geteuid() == 0:
            # The launcher drops root itself. With a user namespace instead, the uid outside would still be root, to
            # which the limit on processes does not apply.
            arguments += ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
        else:
            arguments += ["--unshare-user"]
        for folder in map(Path, SYSTEM_FOLDERS):
            if folder.is_symlink():  # on merged-usr systems /bin and /lib are links into /usr
                arguments += ["--symlink", str(folder.readlink()), str(folder)]
            elif folder.is_dir():
                arguments += ["--ro-bind", str(folder), str(folder)]
        arguments += ["--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"]
        size = str(self._config.max_disk_mib << 20)
        # Any uid may write to /tmp, with the sticky bit as usual.
        arguments += ["--perms", "1777", "--size", size, "--tmpfs", "/tmp"]
        readable = [
            *_python_folders(self._python),
            *(str(path.absolute()) for path in self._config.readable_paths),
        ]
        for folder in _parents([*readable, *DEVICES, "/box/solution.py"]):
            arguments += ["--perms", "0755", "--dir", folder]  # the default permissions are for root only
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
            "RLIMIT_STACK": MAX_STACK_BYTES,
            "RLIMIT_CORE": 0,
        }
        if self._bwrap is not None:  # without a sandbox, the user's other processes would count too
            limits["RLIMIT_NPROC"] = config.max_processes
        return limits


def _communicate(
    process: subprocess.Popen[bytes], stdin: bytes, timeout_s: float, max_bytes: int
) -> tuple[bytes, str, float]:
    """Write the input and read the output of a process until the output ends.

    Returns:
        The output and "", or the output so far and the reason for giving up (time or size); and the time at which the
        code started.
    """
    assert process.stdin is not None
    assert process.stdout is not None
    started = time.monotonic()
    deadline = started + STARTUP_TIMEOUT_S
    output = bytearray()
    rest = memoryview(stdin)
    # A blocking write of a large input would deadlock with a program that waits for its output to be read.
    os.set_blocking(process.stdin.fileno(), False)
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdin, selectors.EVENT_WRITE)
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            ready = selector.select(max(0.0, deadline - time.monotonic()))
            if not ready or time.monotonic() > deadline:
                seconds = timeout_s if output else STARTUP_TIMEOUT_S
                return bytes(output), f"it ran past {seconds:g} s", started
            for key, _ in ready:
                if key.fileobj is process.stdin:
                    rest = _feed(process.stdin.fileno(), rest)
                    if not rest:
                        selector.unregister(process.stdin)
                        process.stdin.close()
                    continue
                chunk = os.read(process.stdout.fileno(), 1 << 16)
                if not chunk:
                    return bytes(output), "", started
                if not output:
                    # The first byte is the launcher's READY: from here on the time is the code's.
                    started = time.monotonic()
                    deadline = started + timeout_s
                output += chunk
                if len(output) > max_bytes:
                    return bytes(output), f"it printed more than {max_bytes >> 20} MiB", started


def _feed(descriptor: int, rest: memoryview) -> memoryview:
    """Write as much as the pipe accepts and return the rest, which is empty if the reader is gone."""
    try:
        return rest[os.write(descriptor, rest[: 1 << 16]) :]
    except BlockingIOError:
        return rest
    except BrokenPipeError:
        return rest[:0]


@contextlib.contextmanager
def _readable(data: bytes) -> Iterator[int]:
    """Yield a file descriptor from which `data` can be read."""
    descriptor = os.memfd_create("sandbox", os.MFD_CLOEXEC)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        os.lseek(descriptor, 0, os.SEEK_SET)
        yield descriptor
    finally:
        os.close(descriptor)


def _sandbox_uid() -> int | None:
    """Return the uid for the sandboxes of this process, or None if not root, where they keep this user's."""
    if os.geteuid() != 0:
        return None
    wanted = FIRST_UID + os.getpid()
    for line in Path("/proc/self/uid_map").read_text().splitlines():
        # A line has the first uid inside this namespace, the first one outside, and their number.
        first, _, count = map(int, line.split())
        if first <= wanted < first + count:
            return wanted
    return 65534  # the user nobody, in a container that maps fewer uids


def _parents(paths: list[str]) -> list[str]:
    """Return the folders above `paths`, parents first, without the root and the system's folders."""
    folders = {str(parent) for path in paths for parent in Path(path).parents}
    return sorted(folder for folder in folders - {"/"} if not folder.startswith(SYSTEM_FOLDERS))


@cache
def _python_folders(python: Path) -> tuple[str, ...]:
    """Return the folders that an interpreter needs, without the system's folders."""
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
