"""Environments that misbehave on request, for the tests of pool and worker."""

import array
import asyncio
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

from megatron_prime.environments.protocol import Step

LOADED = os.getpid()


class Scripted:
    """Executes the command in the text of a response, and counts its turns."""

    def __init__(self, greeting="hello"):
        self.greeting = greeting
        self.row = None
        self.texts = []

    def reset(self, row):
        self.row = row
        if row.answer == "hang":
            time.sleep(1000)
        if row.answer == "random":
            return [{"role": "user", "content": os.urandom(8).hex()}]
        return [*row.messages, {"role": "user", "content": self.greeting}]

    def step(self, response):
        self.texts.append(response.text)
        command, _, argument = response.text.partition(" ")
        return getattr(self, f"_{command}", self._echo)(argument)

    def _echo(self, argument):
        return Step.reply(f"{len(self.texts)}: {' '.join(self.texts)}", reward=0.5)

    def _done(self, argument):
        return Step.done(float(argument or 1), reason="why")

    def _pid(self, argument):
        return Step.reply(str(os.getpid()))

    def _random(self, argument):
        return Step.reply(str(os.getpid()))

    def _exit(self, argument):
        os._exit(int(argument))

    def _crash_once(self, argument):
        if not Path(argument).exists():
            Path(argument).touch()
            os._exit(9)
        return Step.reply("survived")

    def _hang(self, argument):
        time.sleep(1000)

    def _sleep(self, argument):
        time.sleep(float(argument))
        return Step.reply("slept")

    def _raise(self, argument):
        raise KeyError("no such room")

    def _system_exit(self, argument):
        sys.exit(1)

    def _print(self, argument):
        print("noise", flush=True)
        os.write(1, b"\0\0\0\1x")
        return Step.reply(repr(sys.stdin.read()))

    def _fork(self, argument):
        return Step.reply("parent" if os.fork() else "child")

    def _child(self, argument):
        Path(argument).write_text(str(subprocess.Popen(["sleep", "1000"]).pid))
        return Step.reply("started")

    def _forge(self, argument):
        for descriptor in range(3, 64):
            try:
                os.write(descriptor, b"\x06" * 100)
            except OSError:
                continue
        return Step.reply("forged")

    def _memory(self, argument):
        return Step.reply(str(len(bytearray(2**36))))

    def _long(self, argument):
        return Step.reply("x" * 10**8)

    def _return(self, argument):
        return RETURNED[argument]

    def _torch(self, argument):
        return Step.reply(str("torch" in sys.modules))


class NoNumber:
    def __float__(self):
        raise TypeError("only arrays of one number can be converted")


RETURNED = {
    "nothing": None,
    "text": "a reply",
    "no_messages": Step.reply([]),
    "no_role": Step.reply({"content": "x"}),
    "unknown_role": Step.reply({"role": "human", "content": "x"}),
    "assistant": Step.reply({"role": "assistant", "content": "x"}),
    "content_of_parts": Step.reply({"role": "user", "content": [{"type": "text", "text": "x"}]}),
    "no_json": Step.reply({"role": "user", "content": "x", "extra": {1, 2}}),
    "half_a_character": Step.reply("\ud800"),
    "nan": Step.reply("x", reward=float("nan")),
    "reward": Step.reply("x", reward=1.5),
    "reward_of_text": Step.reply("x", reward="1"),  # type: ignore[arg-type]
    "outcome": Step.done(2.0),
    "huge_outcome": Step.done(10**400),
    "array": Step.done(array.array("d", [1.0])),  # type: ignore[arg-type]
    "number_that_fails": Step.done(NoNumber()),  # type: ignore[arg-type]
    "early_outcome": Step((({"role": "user", "content": "x"}),), outcome=1.0),
}


class Async:
    """An environment of coroutines with a task that outlives a call."""

    tools = ({"type": "function", "function": {"name": "look", "parameters": {}}},)

    async def reset(self, row):
        await asyncio.sleep(0)
        self.event = asyncio.Event()
        self.task = asyncio.get_running_loop().create_task(self.event.wait())
        return row.messages

    async def step(self, response):
        if response.text == "raise":
            await asyncio.sleep(0)
            raise KeyError("later")
        self.event.set()
        await asyncio.wait_for(self.task, 5)
        return Step.reply("awaited")


class NoStep:
    def reset(self, row):
        return row.messages


class BadTools:
    tools = ("calculator",)

    def reset(self, row):
        return row.messages

    def step(self, response):
        return Step.done()


def die_later():
    threading.Timer(0.1, os._exit, [5]).start()
