"""The policy versions of a logged response that weight syncs have interrupted."""

from collections.abc import Mapping
from typing import Any

VERSION_COLUMNS = ("version_ends", "versions")


def logged_versions(row: Mapping[str, Any]) -> tuple[tuple[int, int, int], ...]:
    """Return `Rollout.version_spans` of a logged response, from VERSION_COLUMNS."""
    ends = row["version_ends"] or []
    return tuple(zip(row["versions"] or [], [0, *ends[:-1]], ends, strict=True)) if ends else ()
