"""A verifier that misbehaves on request, for the tests of the pool. `scripted_worker` registers it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path


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

    def _torch(self, argument, answer):
        return float("torch" in sys.modules)
