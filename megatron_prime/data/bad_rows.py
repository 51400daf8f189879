"""What becomes of a row that does not fit: it stops the reading, or is left out and told of."""

from typing import Literal

NUM_EXAMPLES = 5
"""Rows whose reason is kept for the log; of thousands, the first tell as much as all."""


class BadRows:
    """Counts the rows left out of one data set."""

    def __init__(self, policy: Literal["stop", "skip"]) -> None:
        """Start with none; `policy` is data.on_bad_row."""
        self._policy = policy
        self.num_rows = 0
        self.examples: list[str] = []
        """Reasons of the first few, each with file and row."""

    def refuse(self, error: ValueError) -> None:
        """A row does not fit. Raises `error` with how to go on without the row, unless rows may be skipped."""
        if self._policy == "stop":
            raise ValueError(f"{error}; data.on_bad_row = 'skip' leaves such rows out") from error
        self.num_rows += 1
        if len(self.examples) < NUM_EXAMPLES:
            self.examples.append(str(error))

    def lines(self) -> list[str]:
        """What to log: nothing when all rows fit."""
        if not self.num_rows:
            return []
        more = f", the first {len(self.examples)}:" if self.num_rows > len(self.examples) else ":"
        return [f"{self.num_rows} rows do not fit and are left out{more}", *self.examples]
