"""A pseudo-terminal, and the screen that a person would see on it after some output."""

import os
import pty
import re
from collections.abc import Sequence
from typing import TextIO

from rich.cells import cell_len

_TOKEN = re.compile(r"\x1b\[(\?25[lh]|\d*[A-Za-z]|[\d;]*m)|\r|\n|[^\x1b\r\n]+")


class Screen:
    """The rows of a terminal that never scrolls, as far as this project's escape sequences go.

    A line feed also returns to the first column, as the kernel's terminals make it do.
    """

    def __init__(self, text: str, columns: int = 80) -> None:
        self._rows = [[" "] * columns]
        self._columns = columns
        self.row = self.column = 0
        self.is_cursor_visible = True
        for token in _TOKEN.finditer(text):
            self._take(token[0])

    @property
    def lines(self) -> list[str]:
        """The text of each row, without trailing empty rows."""
        lines = ["".join(row).rstrip() for row in self._rows]
        while lines and not lines[-1]:
            lines.pop()
        return lines

    def _take(self, token: str) -> None:
        if token == "\r":
            self.column = 0
        elif token == "\n":
            self.column = 0
            self._down()
        elif token == "\x1b[J":
            self._rows[self.row][self.column :] = [" "] * (self._columns - self.column)
            del self._rows[self.row + 1 :]
        elif token.startswith("\x1b[") and token.endswith("A"):
            self.row -= int(token[2:-1])
        elif token.startswith("\x1b[?25"):
            self.is_cursor_visible = token.endswith("h")
        elif token.startswith("\x1b"):
            assert token.endswith("m"), f"unknown sequence {token!r}"
        else:
            for character in token:
                if self.column == self._columns:
                    self.column = 0
                    self._down()
                self._rows[self.row][self.column] = character
                width = cell_len(character)
                if width == 2:
                    self._rows[self.row][self.column + 1] = ""
                self.column += width

    def _down(self) -> None:
        self.row += 1
        if self.row == len(self._rows):
            self._rows.append([" "] * self._columns)


class Terminal:
    """A pseudo-terminal whose writing end is a text file of this process."""

    def __init__(self) -> None:
        self._reading, self._writing = pty.openpty()
        self.file: TextIO = os.fdopen(self._writing, "w", encoding="utf-8", newline="")

    def read(self) -> str:
        """Return what was written so far; the kernel turns each line feed into a return and a line feed."""
        os.set_blocking(self._reading, False)
        chunks = []
        while True:
            try:
                chunks.append(os.read(self._reading, 1 << 16))
            except OSError:
                return b"".join(chunks).decode()

    def close(self) -> None:
        self.file.close()
        os.close(self._reading)


def run_on_terminal(program: Sequence[str], environment: dict[str, str]) -> tuple[int, str]:
    """Run a program on a pseudo-terminal to its end; return its wait status and all that it wrote."""
    pid, descriptor = pty.fork()
    if pid == 0:
        os.execve(program[0], [*program], environment)
    chunks = []
    while True:
        try:
            chunk = os.read(descriptor, 1 << 16)
        except OSError:  # Linux's way to say that the other end is closed
            break
        if not chunk:
            break
        chunks.append(chunk)
    _, status = os.waitpid(pid, 0)
    os.close(descriptor)
    return status, b"".join(chunks).decode(errors="replace")
