"""Lets the tests of this process start megatron-prime's commands as forks of one that has imported everything.

Importing torch, Megatron and transformers takes over ten seconds of a core in each process. A forked command is a
process like any other (`tests.support.command_server`). Tests of the start itself use `FRESH`.
"""

import atexit
import json
import os
import socket
import subprocess
import sys
import threading
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

from tests.support import command_server
from tests.support.command_server import Command, command_of, files_of

FRESH_SERVERS = "MEGATRON_PRIME_TESTS_FRESH_SERVERS"
"""Environment variable with which SGLang servers are executed, so that the system shows their own environment."""
ROOT = Path(__file__).parents[2]
FRESH = ("-X", "fresh")
"""Options of the interpreter (which ignores them) with which a command is executed in any case."""
FORKED = ("-X", "forked")
"""Options with which one is forked although it runs none of command_server.PROGRAMS."""
MODULES = (
    *(f"megatron_prime.cli.{name}" for name in ("main", "commands", "launch", "train", "sft", "evaluate")),
    *("megatron_prime.cli.convert", "tests.support.layout_worker"),
    # pyarrow imports it when the first rollouts are logged, which would take a quarter of a short run's processor time.
    "pandas",
)
GUARDIAN = "/megatron_prime/engines/sglang/child.py"
"""End of the path of the program that starts a server; its arguments are a time and the server's command line."""
SERVER_MODULES = (
    *("sglang.launch_server", "sglang.srt.plugins", "sglang.srt.managers.scheduler"),
    *("sglang.srt.managers.detokenizer_manager", "sglang.srt.models.qwen2"),
)
PER_SERVER = ("PYTHONPATH", "MEGATRON_PRIME_SERVER_KEY")
"""Variables of each server."""
AT_IMPORT = ("SGL", "TORCH", "OMP_", "HF_", "CUDA_", "TRITON_")
"""Prefixes of variables that modules may read when they are imported."""


class CommandServer:
    """A process that forks commands for this one; it starts with the first command and ends with this process."""

    def __init__(self, interpreter: str, modules: tuple[str, ...], environment: dict[str, str]) -> None:
        self._command = [interpreter, command_server.__file__], modules
        self._lock = threading.Lock()
        self._requests: socket.socket | None = None
        self.environment = environment

    def start(self, command: Command, files: tuple[int, int, int]) -> int:
        """Return the pid of a new child of this process that runs the command."""
        with self._lock:
            if self._requests is None:
                self._requests = self._started()
            socket.send_fds(self._requests, [json.dumps(astuple(command)).encode()], files)
            pid = self._requests.recv(32)
        assert pid, "the process that forks commands has ended"
        return int(pid)

    def _started(self) -> socket.socket:
        own, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        program, modules = self._command
        with other:
            process = subprocess.Popen(
                [*program, str(other.fileno()), *modules],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[other.fileno()],
                env=self.environment,
            )
        atexit.register(process.wait)
        atexit.register(own.close)
        return own


class Forking:
    """Calls of `_posixsubprocess.fork_exec`, which are answered by forks where that is possible."""

    def __init__(self) -> None:
        self._execute = subprocess._fork_exec  # type: ignore[attr-defined]
        self._commands = CommandServer(sys.executable, MODULES, os.environ | {"PYTHONPATH": str(ROOT)})
        self._servers: dict[str, CommandServer] = {}

    def __call__(self, *call: Any) -> int:
        """Start a program, and return its pid."""
        command = command_of(call, sys.executable, GUARDIAN) if call[21] is None else None
        server = command and self._server_of(command)
        if command is None or server is None:
            return self._execute(*call)
        here = command.folder or str(Path.cwd())
        environment = dict(os.environ) if command.environment is None else command.environment
        return server.start(replace(command, folder=here, environment=environment), files_of(call))

    def _server_of(self, command: Command) -> CommandServer | None:
        """Return the process that has imported the modules of a command, or None if there is none."""
        words = command.arguments
        if not words[0].endswith(GUARDIAN):
            return self._commands
        interpreter, option, *module = words[2:5]
        if option != "-m" or command.environment is None or module[0] not in command_server.PROGRAMS:
            return None
        if FRESH_SERVERS in command.environment:
            return None
        environment = {name: value for name, value in command.environment.items() if name not in PER_SERVER}
        server = self._servers.setdefault(
            interpreter, CommandServer(interpreter, SERVER_MODULES, environment)
        )
        return server if _at_import(server.environment) == _at_import(environment) else None


def _at_import(environment: dict[str, str]) -> dict[str, str]:
    """Return the variables that SGLang may read when it is imported."""
    return {name: value for name, value in environment.items() if name.startswith(AT_IMPORT)}


def pytest_configure() -> None:
    """Fork commands from now on, wherever this process starts one by subprocess."""
    subprocess._fork_exec = Forking()  # type: ignore[attr-defined]
