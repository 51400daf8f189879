"""The types of a declared metric."""

from typing import Literal

Kind = Literal["scalar", "histogram", "text"]
Unit = Literal[
    "fraction",
    "count",
    "tokens",
    "tokens/s",
    "nats",
    "nats/token",
    "reward",
    "s",
    "GiB",
    "0 or 1",
    "1",
    "text",
]
"""`fraction` is in [0, 1]; `1` is a number without a unit; `reward` is in units of the outcome, which is in [0, 1]."""
Row = tuple[str, Unit, str] | tuple[str, Unit, str, Kind]
"""Tag below the group, unit, description, and kind where it is not scalar."""
