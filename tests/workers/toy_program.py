"""A worker program for tests: it executes the commands that it is sent."""

import contextlib
import os
import sys
import time

from megatron_prime.workers.program import serve


def main():
    timeout_s, greeting = sys.argv[1:3]

    def load():
        print("noise on stdout")
        if greeting == "fail":
            raise KeyError("no such tool")
        if greeting == "die":
            os._exit(4)
        return lambda request: answer(*request, greeting, float(timeout_s))

    serve(load, float(timeout_s), takes_lists=greeting == "lists")


def answer(command, value, greeting, timeout_s):
    if command == "sleep":
        time.sleep(value)
    if command == "exit":
        os._exit(value)
    if command == "write":
        for descriptor in range(3, 16):
            with contextlib.suppress(OSError):
                os.write(descriptor, bytes([value]))
    if command == "read":
        return sys.stdin.read()
    if command == "long":
        return "x" * value
    return [greeting, value, hash("text"), timeout_s]
