import asyncio
import json

import pytest

from megatron_prime.environments.registry import load_environment
from megatron_prime.workers.errors import MAX_DETAIL, MAX_TRACEBACK, describe_error, describe_fault, plain


class HostileError(Exception):
    def __str__(self):
        raise ValueError("no text")


def caught(function):
    with pytest.raises(BaseException) as info:
        function()
    return info.value


async def fails():
    raise KeyError("later")


CASES = {
    "plain": (lambda: [][1], "IndexError: list index out of range", "in <lambda>"),
    "of a library": (lambda: json.loads("{"), "Expecting property name", "json"),
    "async": (lambda: asyncio.run(fails()), "KeyError: 'later'", "in fails"),
    "hostile": (lambda: (_ for _ in ()).throw(HostileError()), "HostileError: <exception str() failed>", ""),
}


@pytest.mark.parametrize(("function", "text", "trace"), CASES.values(), ids=CASES)
def test_an_error_has_its_place_in_the_users_code(function, text, trace):
    line, lines = describe_error(caught(function))
    assert text in line and f"({__file__}, line " in line and "\n" not in line
    assert trace in lines


def test_descriptions_are_short_and_printable():
    def fail():
        raise ValueError("x\ud800\x1b[2J" * 100_000)

    line, lines = describe_error(caught(fail))
    assert len(line) < 4 * MAX_DETAIL and len(lines) < MAX_TRACEBACK + 100
    assert plain(line) == line and "\x1b" not in lines


def load(name, **settings):
    return load_environment({"name": name, "settings": settings})


FAULTS = {
    "no such class": (lambda: load("tests.workers.test_errors:Nothing"), "has no attribute 'Nothing'"),
    "no class": (lambda: load("tests.workers.test_errors:caught"), "missing: reset, step"),
    "other settings": (lambda: load("guess_number", low=1), "unexpected keyword argument 'low'"),
    "values of settings": (lambda: load("guess_number", lowest=500).create(), "lowest = 500 must not exceed"),
}


@pytest.mark.parametrize(("function", "text"), FAULTS.values(), ids=FAULTS)
def test_a_wrong_setting_is_one_line_without_a_traceback(function, text):
    # Called through this package alone, as a worker does.
    error = caught(function)
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    fault = describe_fault(error.with_traceback(trace))
    assert text in fault and "\n" not in fault and "Traceback" not in fault


def test_a_fault_of_the_users_code_keeps_its_traceback():
    assert "Traceback" in describe_fault(caught(lambda: int("x")))
    assert "Traceback" in describe_fault(caught(lambda: [][1]))
