import asyncio
import json

import pytest

from megatron_prime.workers.errors import MAX_DETAIL, MAX_TRACEBACK, describe_error, plain


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
