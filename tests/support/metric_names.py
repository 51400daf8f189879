"""Checks that metrics are documented in `observability.metrics.NAMES`."""

from collections.abc import Iterable

from megatron_prime.observability.metrics import NAMES


def undocumented(names: Iterable[str]) -> list[str]:
    """Return the names that NAMES does not cover, sorted."""
    return sorted(name for name in names if not any(_covers(pattern, name) for pattern in NAMES))


def _covers(pattern: str, name: str) -> bool:
    return name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern
