"""A verifier that misbehaves on request, for the tests of the pool. `scripted_worker` registers it."""

import asyncio
import contextlib
import fcntl
import os
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from megatron_prime.workers.frames import DONE, encode_frame

FRAME = encode_frame({"reward": 1.0, "status": "ok", "detail": ""})
FORGED = {
    "frame": FRAME,
    "token": bytes(16) + FRAME,
    "byte": b"x",
    "done": DONE,
    "all": DONE + bytes(16) + FRAME,
}


class Scripted:
    """A verifier that executes the command in the response text, with `answer` as its argument."""

    in_process = False

    def verify(self, response_text: str, answer: str) -> float:
        command, _, argument = response_text.partition(" ")
        return getattr(self, f"_{command}")(argument, answer)

    def _reward(self, argument, answer):
        return float(argument)

    def _length(self, argument, answer):
        return float(len(argument) == int(answer))

    def _sleep(self, argument, answer):
        time.sleep(float(argument))
        return 1.0

    def _pid(self, argument, answer):
        with Path(answer).open("a") as file:
            file.write(f"{os.getpid()}\n")
        return 1.0

    def _hang(self, argument, answer):
        # Spends a long time in C code, where no Python signal handler can run.
        return float(pow(7, 10**9) == 0)

    def _stubborn(self, argument, answer):
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM):
            signal.signal(number, signal.SIG_IGN)
        while True:
            time.sleep(1)

    def _crash(self, argument, answer):
        os._exit(3)

    def _crash_once(self, argument, answer):
        if not Path(answer).exists():
            Path(answer).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return 1.0

    def _print(self, argument, answer):
        print("noise on stdout", flush=True)
        os.write(1, b"\0\0\0\1x")
        return float(sys.stdin.read() == "")

    def _child(self, argument, answer):
        child = subprocess.Popen(["sleep", "1000"])
        Path(answer).write_text(str(child.pid))
        time.sleep(1000)
        return 1.0

    def _memory(self, argument, answer):
        return float(len(bytearray(2**36)) == 0)

    def _forge(self, argument, answer):
        """Write verdicts of one's own to every descriptor, with and without what looks like a token."""
        self._write_all(FORGED[argument])
        return 0.0

    def _steal(self, argument, answer):
        """Read whatever waits in a pipe, and answer with it."""
        for descriptor in range(3, 64):
            with contextlib.suppress(OSError):
                if (
                    fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
                    and select.select([descriptor], [], [], 0)[0]
                ):
                    stolen = os.read(descriptor, 1024)
                    self._write_all(DONE + stolen[:16] + FRAME)
        return 0.0

    def _write_all(self, data):
        for descriptor in range(3, 64):
            with contextlib.suppress(OSError):
                os.write(descriptor, data)

    def _forge_later(self, argument, answer):
        """Forge from a thread and a forked process, after the verdict."""
        self._forked = os.fork() if argument == "fork" else 1
        if self._forked == 0:
            time.sleep(float(answer))
            self._forge("frame", "")
            os._exit(0)
        if argument == "thread":
            threading.Timer(float(answer), self._forge, ["frame", ""]).start()
        return 0.25

    def _look_around(self, argument, answer):
        """Return 1 if a variable of a function that is running has what can be a token: 16 bytes."""
        frame, values = sys._getframe(), []
        while frame:
            values += frame.f_locals.values()
            frame = frame.f_back
        values += [item for value in values if isinstance(value, dict) for item in value.values()]
        return float(any(isinstance(value, bytes | bytearray) and len(value) >= 16 for value in values))

    def _fork_and_return(self, argument, answer):
        """Return twice, once in a copy of the process."""
        return 0.5 if os.fork() else 1.0

    def _exit(self, argument, answer):
        sys.exit(0)

    def _cancel(self, argument, answer):
        raise asyncio.CancelledError

    def _close_all(self, argument, answer):
        os.closerange(3, 64)
        return 1.0

    def _detail(self, argument, answer):
        raise ValueError("x" * 10**7)

    def _torch(self, argument, answer):
        return float("torch" in sys.modules)
