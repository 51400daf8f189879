"""Checks that metrics are declared in `observability.catalog`."""

from collections.abc import Iterable

from megatron_prime.observability.catalog import metric_of


def undocumented(names: Iterable[str], kind: str = "scalar") -> list[str]:
    """Return the names without a declaration (description and unit) of a kind, sorted."""
    declared = {name: metric_of(name) for name in names}
    return sorted(name for name, metric in declared.items() if metric is None or metric.kind != kind)
