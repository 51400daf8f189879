"""The status stays below all output, whoever writes it, and leaves nothing behind."""

import io
import threading
import time
from collections.abc import Iterator

import pytest

from megatron_prime.observability import status_area
from megatron_prime.observability.status_area import StatusArea
from tests.support.screen import Screen

AREAS: list[StatusArea] = []


@pytest.fixture
def output() -> Iterator[io.StringIO]:
    yield io.StringIO()
    for area in AREAS:
        for block in [*area._blocks]:
            area.remove(block)  # ends its thread
    AREAS.clear()


def area_on(output: io.StringIO, columns: int = 80, rows: int = 24) -> StatusArea:
    AREAS.append(StatusArea(lambda: output, lambda: (columns, rows)))
    return AREAS[-1]


def test_printed_text_goes_above_the_status_and_the_cursor_to_an_empty_line_between(output):
    area = area_on(output)
    area.add(lambda columns: ["status one", "status two"])
    area.print("a line")
    area.print("two\nlines")
    screen = Screen(output.getvalue())
    assert screen.lines == ["a line", "two", "lines", "", "status one", "status two"]
    assert (screen.row, screen.column) == (3, 0)


def test_what_others_write_to_the_terminal_stays(output):
    """Another rank, or a library in C++, knows nothing of the status."""
    text = ["status"]
    area = area_on(output)
    area.add(lambda columns: text)
    output.write("WARNING: rank 1: something\n")
    text[0] = "status later"
    area.draw()
    assert Screen(output.getvalue()).lines == ["WARNING: rank 1: something", "", "status later"]


def test_blocks_stand_below_each_other_and_leave_nothing(output):
    area = area_on(output)
    blocks = [lambda columns: ["run"], lambda columns: ["evaluation"]]
    for block in blocks:
        area.add(block)
    assert Screen(output.getvalue()).lines == ["", "run", "evaluation"]
    area.remove(blocks[1])
    assert Screen(output.getvalue()).lines == ["", "run"]
    area.remove(blocks[0])
    screen = Screen(output.getvalue())
    assert screen.lines == [] and (screen.row, screen.column) == (0, 0)
    assert screen.is_cursor_visible and "\x1b[?25" not in output.getvalue()
    assert not area.is_shown


def test_lines_never_wrap_and_never_fill_the_screen(output):
    area = area_on(output, columns=20, rows=4)
    area.add(lambda columns: ["x" * 50, "語" * 30, "third"])
    assert Screen(output.getvalue(), 20).lines == ["", "x" * 19, "語" * 9]


def test_a_change_of_the_size_leaves_no_rest(output):
    size = [80, 24]
    area = StatusArea(lambda: output, lambda: (size[0], size[1]))
    AREAS.append(area)
    area.add(lambda columns: ["s" * columns])
    size[0] = 30
    area.draw()
    assert Screen(output.getvalue()).lines == ["", "s" * 29]


def test_the_status_is_drawn_again_by_itself_and_only_when_it_changes(output, monkeypatch):
    monkeypatch.setattr(status_area, "REFRESH_S", 0.01)
    text = ["before"]
    area = area_on(output)

    def block(columns: int) -> list[str]:
        return text

    area.add(block)
    time.sleep(0.1)
    assert output.getvalue().count("before") == 1
    text[0] = "after"
    deadline = time.monotonic() + 5
    while "after" not in output.getvalue() and time.monotonic() < deadline:
        time.sleep(0.01)
    area.remove(block)
    assert output.getvalue().count("after") == 1
    time.sleep(0.1)
    assert not any(thread.name == "status" and thread.is_alive() for thread in threading.enumerate())
