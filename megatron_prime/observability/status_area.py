"""Lines at the bottom of a terminal that stay below everything that is printed.

Other processes write to the same terminal: other ranks, libraries in C++, a signal's handler. Therefore the cursor
rests on an empty line above the status, where such text appears, and the next drawing puts the status below it.
Everything from the cursor on is erased first, so that a change of the terminal's size leaves nothing behind. The cursor
stays visible, so that a kill leaves nothing to restore.
"""

import os
import shutil
import threading
from collections.abc import Callable, Sequence
from typing import IO

from rich.cells import set_cell_size

ERASE = "\r\x1b[J"
"""Erases from the begin of the cursor's line to the end of the screen."""
REFRESH_S = 0.5
"""Time between two drawings."""

Lines = Callable[[int], Sequence[str]]
"""Returns the lines of a block for a width in columns."""


class StatusArea:
    """Blocks of lines, in the order in which they were added.

    Args:
        file: returns the terminal.
        size: returns its columns and rows.
    """

    def __init__(
        self,
        file: Callable[[], IO[str]],
        size: Callable[[], tuple[int, int]] = lambda: shutil.get_terminal_size(),
    ) -> None:
        self._file = file
        self._size = size
        self._blocks: list[Lines] = []
        self._drawn = ""
        self._lock = threading.RLock()
        self._wake = threading.Event()
        os.register_at_fork(after_in_child=self._forget)

    @property
    def is_shown(self) -> bool:
        """Whether there is anything to show."""
        return bool(self._blocks)

    def add(self, block: Lines) -> None:
        """Show a block below the others."""
        with self._lock:
            self._blocks.append(block)
            self.draw()
            if len(self._blocks) == 1:
                self._wake = threading.Event()
                threading.Thread(target=self._refresh, args=(self._wake,), name="status", daemon=True).start()

    def remove(self, block: Lines) -> None:
        """Show a block no longer."""
        with self._lock:
            self._blocks.remove(block)
            if not self._blocks:
                self._wake.set()
            self._drawn = ""
            self._write(ERASE + self._text())

    def print(self, text: str) -> None:
        """Print text, which may have several lines, above the status."""
        with self._lock:
            self._write(f"{ERASE}{text}\n{self._text()}")

    def draw(self) -> None:
        """Draw the status if it has changed."""
        with self._lock:
            text = self._text()
            if text != self._drawn:
                self._drawn = text
                self._write(ERASE + text)

    def _text(self) -> str:
        """Return the lines, and what leads back to the empty line above them."""
        columns, rows = self._size()
        lines = [line for block in self._blocks for line in block(columns - 1)]
        # A line that wraps, or one below the last row, would leave the cursor in the wrong place.
        shown = [set_cell_size(line, columns - 1).rstrip() for line in lines[: max(0, rows - 2)]]
        return "".join(f"\n{line}" for line in shown) + (f"\x1b[{len(shown)}A\r" if shown else "")

    def _write(self, text: str) -> None:
        file = self._file()
        file.write(text)
        file.flush()

    def _refresh(self, end: threading.Event) -> None:
        while not end.wait(REFRESH_S):
            try:
                self.draw()
            except (OSError, ValueError):
                return  # the terminal is gone, or the file closed

    def _forget(self) -> None:
        """Leave the terminal to the parent: a fork has neither the thread nor the right to draw."""
        self._lock = threading.RLock()
        self._blocks = []
