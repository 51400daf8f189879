"""The turns of a logged response."""

from collections.abc import Mapping
from typing import Any

from megatron_prime.types import Turn

TURN_COLUMNS = ("policy_mask", "turn_ends", "turn_rewards")


def logged_turns(row: Mapping[str, Any]) -> tuple[Turn, ...]:
    """Return the turns of a logged response, from TURN_COLUMNS; in each, the policy's tokens come first."""
    if row["turn_ends"] is None:
        return ()
    starts = (0, *row["turn_ends"][:-1])
    return tuple(
        Turn(start + sum(row["policy_mask"][start:end]), end, reward)
        for start, end, reward in zip(starts, row["turn_ends"], row["turn_rewards"], strict=True)
    )
