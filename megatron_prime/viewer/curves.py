"""The data of the charts, and the table of final values."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from megatron_prime.observability.catalog import description_of
from megatron_prime.observability.jsonl import Record
from megatron_prime.viewer.encoding import rounded
from megatron_prime.viewer.panels import PANELS, PHASES, Panel, Series
from megatron_prime.viewer.runs import Run, finite

OTHER_TIME = "time/other_s"


@dataclass(frozen=True)
class FinalValue:
    """One row of the table of final values."""

    metric: str
    description: str
    values: tuple[str, ...]
    """The last value of each run, as text; "" where it has none."""


def columns(records: Sequence[Record]) -> dict[str, list[float | None]]:
    """Return the values of every metric over the records; None where one is missing or not finite."""
    names = dict.fromkeys(name for record in records for name in record if name != "step")
    table = {name: [finite(record.get(name)) for record in records] for name in names}
    if "time/step_s" in table:
        table[OTHER_TIME] = [_other_time(record) for record in records]
    return table


def _other_time(record: Record) -> float | None:
    """Return the seconds of a step outside of all phases."""
    whole = finite(record.get("time/step_s"))
    if whole is None:
        return None
    return max(0.0, whole - sum(finite(record.get(f"time/{phase}_s")) or 0.0 for phase in PHASES))


def shown_panels(runs: Sequence[Run]) -> list[Panel]:
    """Return the panels with the series that any of the runs has; panels without one are left out."""
    names = dict.fromkeys(name for run in runs for name in columns(run.records))
    return [panel for whole in PANELS if (panel := _with_series(whole, names)).series]


def _with_series(panel: Panel, names: dict[str, None]) -> Panel:
    own = [series for series in panel.series if series.metric in names]
    if panel.prefix:
        rest = (name for name in names if name.startswith(panel.prefix))
        own += [Series(name, name.removeprefix(panel.prefix)) for name in rest]
    if own == [Series(OTHER_TIME, "other")]:
        own = []
    return Panel(**{**vars(panel), "series": tuple(own)})


def curve_data(runs: Sequence[Run]) -> dict[str, object]:
    """Return the values of all runs, and the panels that show them, as the page's script expects them."""
    return {
        "panels": [asdict(panel) for panel in shown_panels(runs)],
        "runs": [
            {
                "name": run.name,
                "steps": [record["step"] for record in run.records],
                "values": {name: rounded(values) for name, values in columns(run.records).items()},
            }
            for run in runs
        ],
        "descriptions": {
            name: description_of(name)
            for name in sorted({name for run in runs for name in columns(run.records)})
        },
    }


def final_values(runs: Sequence[Run]) -> list[FinalValue]:
    """Return the last value of each metric of the panels, for each run."""
    tables = [columns(run.records) for run in runs]
    names = dict.fromkeys(series.metric for panel in shown_panels(runs) for series in panel.series)
    return [
        FinalValue(
            name,
            description_of(name) or _OWN.get(name, ""),
            tuple(_last(table.get(name, [])) for table in tables),
        )
        for name in names
    ]


_OWN = {OTHER_TIME: "Seconds of a step outside of all phases."}


def _last(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{known[-1]:.4g}" if known else ""


def time_shares(run: Run) -> list[tuple[str, float]]:
    """Return (phase, share of the time of all steps) of the phases that a run has, the longest first."""
    return sorted(_time_shares(run), key=lambda pair: -pair[1])


def _time_shares(run: Run) -> Iterator[tuple[str, float]]:
    table = columns(run.records)
    whole = _sum(table.get("time/step_s", []))
    for name in [*(f"time/{phase}_s" for phase in PHASES), OTHER_TIME]:
        if whole > 0 and name in table:
            yield name.removeprefix("time/").removesuffix("_s").replace("_", " "), _sum(table[name]) / whole


def idle_shares(run: Run) -> list[tuple[str, float]]:
    """Return (engines, environments or verifiers, share of the time of all steps in which they were idle), if known."""
    table = columns(run.records)
    found = []
    for name in ("engine", "environment", "verifier"):
        pairs = zip(table.get(f"time/{name}_idle_fraction", []), table.get("time/step_s", []), strict=False)
        known = [(share, seconds) for share, seconds in pairs if share is not None and seconds]
        if known:
            whole = sum(seconds for _, seconds in known)
            found.append((f"{name}s", sum(share * seconds for share, seconds in known) / whole))
    return found


def _sum(values: Sequence[float | None]) -> float:
    return float(np.sum([value for value in values if value is not None]))
