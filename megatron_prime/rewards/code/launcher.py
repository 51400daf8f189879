"""The first program in the sandbox: sets limits, drops the uid, reports that it is ready, and runs the code under test.

    python -c <this file> SETTINGS

It uses the standard library only, because this package is not available inside the sandbox. READY is written to
standard output before any code under test runs, so that its absence means that the sandbox failed and not the code.

With `call` in the settings, a function of the code is called with the JSON arguments on standard input, and its result
is written to standard output as JSON; the code's own output is discarded. The code could forge that result, but not
usefully: the expected result never enters the sandbox.
"""

import json
import os
import resource
import sys

READY = b"\x06"

PRELUDE = """
import bisect, collections, copy, functools, heapq, itertools, math, operator, random, re, string, sys
from bisect import *
from collections import *
from functools import *
from heapq import *
from itertools import *
from math import *
from typing import *
"""
"""Imports that coding sites provide for function problems; names that the code defines take precedence."""


def main() -> None:
    """Set the limits and run the code under test."""
    settings = json.loads(sys.argv[1])
    for name, value in settings["rlimits"].items():
        number = getattr(resource, name)
        _, hard = resource.getrlimit(number)
        limit = value if hard == resource.RLIM_INFINITY else min(value, hard)
        # The hard limit is lowered as well, because a process may raise its soft limit up to the hard one.
        resource.setrlimit(number, (limit, limit))
    if settings["uid"] is not None:
        # Groups come first: once the uid is dropped, the process may no longer change them.
        os.setgroups([])
        os.setresgid(settings["uid"], settings["uid"], settings["uid"])
        os.setresuid(settings["uid"], settings["uid"], settings["uid"])
    with open(settings["code"], encoding="utf-8") as file:
        source = file.read()
    os.chdir(settings["folder"])
    # This is written to the descriptor itself, because sys.stdout would keep it in a buffer until the end.
    os.write(1, READY)
    sys.argv = ["solution.py"]
    if settings["call"] is None:
        run(source, "__main__")
    else:
        call(source, settings["call"])


def run(source: str, name: str, prelude: str = "") -> dict[str, object]:
    """Execute the code as a module of that name and return its globals."""
    module = type(sys)(name)
    # dataclasses and pickle look up the module of a class by its name here.
    sys.modules[name] = module
    exec(prelude, module.__dict__)
    exec(compile(source, "solution.py", "exec"), module.__dict__)
    return module.__dict__


def call(source: str, function: str) -> None:
    """Print the JSON of `function(*arguments)`, or of `Solution().function(*arguments)` if there is such a method."""
    arguments = json.loads(sys.stdin.readline())
    result_fd = os.dup(1)
    # From here on the code can neither read the arguments again nor print into the result.
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    names = run(source, "solution", PRELUDE)
    owner = names.get("Solution")
    target = getattr(owner(), function) if callable(owner) and hasattr(owner, function) else names[function]
    # The data sets hold JSON, so tuples and sets in a result are compared as lists.
    result = target(*arguments)  # type: ignore[operator]
    with os.fdopen(result_fd, "w") as file:
        file.write(json.dumps(result, default=list))


if __name__ == "__main__":
    main()
