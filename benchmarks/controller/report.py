"""The tables of the benchmark, from the measurements of `step`."""

from collections.abc import Mapping, Sequence
from typing import Any

GIB = 1 << 30
PHASES = ("rollout", "logprobs", "prm", "advantage", "policy", "describe")
STAGES = ("filter", "batch", "microbatches", "format tokens", "records")
COLUMNS = (
    "version",
    "responses",
    "tokens, millions",
    "from the engine, s",
    "pickled, s (MB)",
    *(f"{stage}, s" for stage in STAGES),
    "sum, s",
    "rollouts, GiB",
    "peak, GiB",
)
TENSOR_COLUMNS = (
    "version",
    "responses",
    "operations",
    "read and written, GB",
    "seconds on this CPU",
    "alive at the peak, GiB",
    *(f"peak in {phase}" for phase in PHASES),
)


def host_table(by_version: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """Return the table of what the host does, with a row for each version and size."""
    rows = []
    for version, found in _by_size(by_version):
        stages = found["stages"]
        rows.append(
            (
                version,
                _size(found),
                f"{found['tokens'] / 1e6:.1f}",
                f"{stages['engine']:.2f}",
                f"{stages['pickled']:.2f} ({found['sent'] / 1e6:,.0f})",
                *(f"{stages[stage]:.3f}" for stage in STAGES),
                f"**{sum(stages[stage] for stage in STAGES):.2f}**",
                f"{found['rollouts'] / GIB:.2f}",
                f"**{found['peak'] / GIB:.2f}**",
            )
        )
    return _table(COLUMNS, rows)


def tensor_table(by_version: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """Return the table of the operations on tensors of the whole batch, which a GPU does where there is one."""
    rows = []
    for version, found in _by_size(by_version):
        phases = found["phases"]
        if not phases:
            continue
        of_device = [phases[name] for name in PHASES[1:]]
        rows.append(
            (
                version,
                _size(found),
                sum(phase["count"] for phase in of_device),
                f"{sum(phase['bytes'] for phase in of_device) / 1e9:,.1f}",
                f"{sum(phase['tensor_s'] for phase in of_device):,.1f}",
                f"**{max(phase['peak'] for phase in of_device) / GIB:.2f}**",
                *(f"{phases[name]['peak'] / GIB:.2f}" for name in PHASES),
            )
        )
    return _table(TENSOR_COLUMNS, rows)


def alive_table(found: Mapping[str, Any]) -> list[str]:
    """Return the table of the tensors that were alive at the peak, the largest first."""
    rows = [(f"`{line}`", kind, f"{size / GIB:.2f}") for size, kind, line in found["at_peak"]]
    return _table(("made by", "shape and type", "GiB"), sorted(rows, key=lambda row: (-float(row[2]), row)))


def _by_size(by_version: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[tuple[str, Mapping[str, Any]]]:
    pairs = [(version, found) for version, results in by_version.items() for found in results]
    return sorted(pairs, key=lambda pair: (pair[1]["is_full"], pair[1]["responses"]))


def _size(found: Mapping[str, Any]) -> str:
    return f"{found['responses']:,}{', all of the longest' * found['is_full']}"


def _table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    cells = [columns, ["---"] * len(columns), *rows]
    return [f"| {' | '.join(map(str, row))} |" for row in cells]
