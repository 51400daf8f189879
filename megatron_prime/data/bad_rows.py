"""The policy for rows that cannot be used: stop the run, or drop the row and report it."""

from typing import Literal

from megatron_prime.data.rows import SettingsError

NUM_EXAMPLES = 5
"""Number of rejected rows whose reason is kept for the log."""
ADVICE = "data.on_bad_row = 'skip' drops such rows"


class BadRows:
    """Counts the rows that were dropped from one data set."""

    def __init__(self, policy: Literal["stop", "skip"]) -> None:
        """Start without any dropped row; `policy` is data.on_bad_row."""
        self._policy = policy
        self.num_rows = 0
        self.examples: list[str] = []
        """Reasons of the first few rows, each with file and row number."""
        self.latest = ""
        """Reason of the latest row."""

    def reject(self, error: ValueError, advice: str = ADVICE) -> None:
        """Drop a row, or stop the run, as the policy says.

        Args:
            error: The reason, which names file and row.
            advice: The end of the message if the run stops.

        Raises:
            ValueError: If the policy is "stop"; `error` with the advice.
            SettingsError: `error`, if it is one. Dropping rows would not help, so the policy does not matter.
        """
        if isinstance(error, SettingsError):
            raise error
        if self._policy == "stop":
            raise ValueError(f"{error}; {advice}") from error
        self.num_rows += 1
        self.latest = str(error)
        if len(self.examples) < NUM_EXAMPLES:
            self.examples.append(str(error))

    def log_lines(self) -> list[str]:
        """Return a summary for the log; empty when no row was dropped."""
        if not self.num_rows:
            return []
        more = f", the first {len(self.examples)}:" if self.num_rows > len(self.examples) else ":"
        return [f"{self.num_rows} invalid rows were dropped{more}", *self.examples]
