"""Samples for verifiers, in short."""

from collections.abc import Iterable

from megatron_prime.sample import Sample


def samples(rows: Iterable[tuple[str, ...]]) -> list[Sample]:
    """Return a sample for each tuple of response text, answer and, if given, data source and ability."""
    names = ("response_text", "answer", "source", "ability")
    return [Sample(**dict(zip(names, row, strict=False))) for row in rows]
