"""A process that has imported a program's modules and runs each command in a fork of itself, which saves the imports.

    python command_server.py SOCKET MODULE...

`tests.support.forked_commands` starts it and sends requests over the socket with that file descriptor. Each command
becomes a child of the process that requested it, with the pid, session, signals and exit code of a program of its own.
In a fork, subprocess forks again where it would start the same interpreter with one of `PROGRAMS`. Standard library
only, because SGLang's environment runs this file too.
"""

import atexit
import contextlib
import ctypes
import gc
import importlib
import json
import multiprocessing
import os
import random
import runpy
import signal
import socket
import subprocess
import sys
import threading
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROGRAMS = (
    *(
        "megatron_prime",
        "megatron_prime.quickstart.arithmetic_task",
        "tools.gpu_check",
        "tools.gpu_checks.ranks",
    ),
    *("sglang.launch_server", "megatron_prime_receiver.serve"),
)
"""Modules that `python -m` runs in a fork."""
FORKING = ("sglang.launch_server", "megatron_prime_receiver.serve")
"""Those whose own processes, which they would spawn, are forked too."""
CLONE_PARENT = 0x00008000
CLONE = {"x86_64": 56, "aarch64": 220}
"""Number of the system call `clone` by machine."""
MAX_BYTES = 1 << 20


@dataclass(frozen=True)
class Command:
    """The part of a call of `_posixsubprocess.fork_exec` that a fork can carry out."""

    arguments: list[str]
    """The command line without the interpreter and its options: `-m MODULE ...`, `-c CODE ...` or `SCRIPT ...`."""
    folder: str | None
    environment: dict[str, str] | None
    is_new_session: bool
    process_group: int
    is_silent: bool = False
    """Whether the program shows no warnings."""

    def run(self, files: tuple[int, int, int], before: Callable[[], object] | None = None) -> None:
        """Become this program in a process that has just been forked. Never returns."""
        code = 1
        try:
            self._prepare(files, before)
            code = _code_of(self._program)
        except BaseException:  # noqa: BLE001 - the fork must not go on with the work of its parent
            traceback.print_exc()
        finally:
            os._exit(code)

    def _prepare(self, files: tuple[int, int, int], before: Callable[[], object] | None) -> None:
        copies = [os.dup(file) for file in files]
        for target, copy in enumerate(copies):
            os.dup2(copy, target)
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        _reset_signals()
        if self.is_new_session:
            os.setsid()
        if self.process_group >= 0:
            os.setpgid(0, self.process_group)
        if before is not None:
            before()
        if self.folder is not None:
            os.chdir(self.folder)
        if self.environment is not None:
            os.environ.clear()
            os.environ.update(self.environment)
        paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
        sys.path[:0] = [os.getcwd(), *filter(None, paths)]
        if self.is_silent or os.environ.get("PYTHONWARNINGS") == "ignore":
            warnings.simplefilter("ignore")
        importlib.invalidate_caches()
        random.seed()  # as every interpreter that starts

    def _program(self) -> None:
        first, *others = self.arguments
        if first == "-m":
            sys.argv[:] = others
            if others[0] in FORKING:
                _fork_processes()
            runpy.run_module(others[0], run_name="__main__", alter_sys=True)
        elif first == "-c":
            sys.argv[:] = ["-c", *others[1:]]
            exec(compile(others[0], "<string>", "exec"), vars(sys.modules["__main__"]))
        else:
            sys.argv[:] = self.arguments
            sys.path[0] = str(Path(first).parent)
            runpy.run_path(first, run_name="__main__")


def command_of(call: tuple[Any, ...], interpreter: str, script: str | None = None) -> Command | None:
    """Return the command of a call of `fork_exec` if a fork is to carry it out, otherwise None.

    Args:
        call: positional arguments of `_posixsubprocess.fork_exec`.
        interpreter: the Python that a fork would be.
        script: end of the path of a script that a fork may run too.
    """
    words, _, close_fds, kept, folder, environment = call[:6]
    python, *arguments = (os.fsdecode(word) for word in words)
    options: list[str] = []
    while arguments[:1] in (["-W"], ["-X"]):
        options += arguments[:2]
        del arguments[:2]
    if python != interpreter or not _is_forked(options, arguments, script):
        return None
    if not close_fds or len(kept) > 1:  # One is the pipe that reports an error of exec.
        return None
    if environment is not None:
        environment = dict(os.fsdecode(pair).split("=", 1) for pair in environment)
    is_new_session, process_group = call[15:17]
    place = os.fsdecode(folder) if folder else None
    return Command(arguments, place, environment, is_new_session, process_group, "ignore" in options)


def _is_forked(options: list[str], arguments: list[str], script: str | None) -> bool:
    if "fresh" in options or not arguments:
        return False
    is_program = arguments[0] == "-m" and arguments[1] in PROGRAMS
    is_script = script is not None and arguments[0].endswith(script)
    return is_program or is_script or "forked" in options


def files_of(call: tuple[Any, ...]) -> tuple[int, int, int]:
    """Return the descriptors that become standard input, output and error of the program."""
    given = call[6], call[9], call[11]
    return tuple(own if file < 0 else file for own, file in enumerate(given))  # type: ignore[return-value]


def fork_commands() -> None:
    """Let subprocess in this process fork where it would start a program of PROGRAMS."""
    execute = subprocess._fork_exec  # type: ignore[attr-defined]

    def fork_or_execute(*call: Any) -> int:
        command = command_of(call, sys.executable)
        if command is None:
            return execute(*call)
        pid = os.fork()
        if pid == 0:
            command.run(files_of(call), before=call[21])
        return pid

    subprocess._fork_exec = fork_or_execute  # type: ignore[attr-defined]


def serve(requests: socket.socket) -> None:
    """Fork a command for each request, and answer with its pid, until the other end is closed."""
    # A Ctrl-C in the terminal reaches this process too. A fork resets handlers, but would inherit SIG_IGN.
    signal.signal(signal.SIGINT, lambda *_: None)
    thread_id = _stored_thread_id()
    while True:
        data, files, _, _ = socket.recv_fds(requests, MAX_BYTES, 3)
        if not data:
            return
        pid = _fork_beside(thread_id)
        if pid == 0:
            Command(*json.loads(data)).run((files[0], files[1], files[2]))
        for file in files:
            os.close(file)
        requests.send(str(pid).encode())


def _fork_beside(thread_id: "ctypes.c_int | None") -> int:
    """Fork a process whose parent is the parent of this one, which has a single thread; return as os.fork does."""
    # A PyDLL keeps Python's lock during a call, as os.fork does.
    library = ctypes.PyDLL(None, use_errno=True)
    number = CLONE[os.uname().machine]
    ctypes.pythonapi.PyOS_BeforeFork()
    pid = library.syscall(number, CLONE_PARENT | signal.SIGCHLD, 0, 0, 0, 0)
    if pid == 0:
        if thread_id is not None:
            thread_id.value = threading.get_native_id()
        ctypes.pythonapi.PyOS_AfterFork_Child()
        return 0
    ctypes.pythonapi.PyOS_AfterFork_Parent()
    if pid < 0:
        raise OSError(ctypes.get_errno(), "clone failed")
    return pid


def _stored_thread_id() -> "ctypes.c_int | None":
    """Return the place where the C library keeps the id of this thread, which only its own fork updates."""
    library = ctypes.CDLL(None)
    library.pthread_self.restype = ctypes.c_void_p
    start, size = library.pthread_self(), ctypes.sizeof(ctypes.c_int)
    places = [ctypes.c_int.from_address(start + offset) for offset in range(0, 1024, size)]
    found = [place for place in places if place.value == threading.get_native_id()]
    return found[0] if len(found) == 1 else None


def _fork_processes() -> None:
    """Let multiprocessing fork, whatever method the program sets."""
    multiprocessing.set_start_method("fork", force=True)
    multiprocessing.set_start_method = lambda *_arguments, **_options: None


def _reset_signals() -> None:
    """Restore the handlers with which an interpreter starts."""
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _code_of(program: Callable[[], object]) -> int:
    """Run a program as an interpreter does, wait for its threads, and return its exit code."""
    code: object = 1
    try:
        program()
        code = 0
    except SystemExit as ending:
        code = ending.code
    except BaseException:  # noqa: BLE001 - an interpreter reports any error
        traceback.print_exc()
    if code is not None and not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    return (code or 0) & 0xFF


def main() -> None:
    """Import the modules and serve requests."""
    # The folder of this file, whose names would hide libraries. Option -P would reach processes that a fork spawns.
    del sys.path[0]
    number, *modules = sys.argv[1:]
    # Imports make millions of objects and hardly any garbage, for which collections would search them again and again.
    gc.disable()
    for module in modules:
        importlib.import_module(module)
    fork_commands()
    # Otherwise each garbage collection of a fork walks all objects of the imported modules.
    gc.collect()
    gc.freeze()
    gc.enable()
    with socket.socket(fileno=int(number)) as requests:
        serve(requests)


if __name__ == "__main__":
    main()
