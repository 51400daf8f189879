"""The charts as png or svg for papers, by matplotlib."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megatron_prime.viewer.curves import columns, shown_panels
from megatron_prime.viewer.panels import Panel
from megatron_prime.viewer.runs import Run

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#a67c00", "#6b6f76", "#3b3b98")
"""Colours that people with any kind of colour vision can tell apart."""
STYLES = ("-", "--", ":", "-.")
SIZE = (4.0, 2.7)
"""Inches: two figures fit beside each other on a page."""


def export_figures(runs: Sequence[Run], folder: Path, kind: str) -> list[Path]:
    """Write each chart into a file of its own, and return the files.

    Args:
        runs: The runs, all in each chart; phases of a stacked chart are those of one run, which has a file of its own.
        folder: Folder to write; created if it does not exist.
        kind: `png` or `svg`.

    Raises:
        ValueError: matplotlib is not installed, or no run has metrics.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError(
            "--export needs matplotlib, which is not installed: pip install 'megatron-prime[plots]'"
        ) from error
    panels = shown_panels(runs)
    if not panels:
        raise ValueError("--export: no run has metrics that a chart shows")
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    # Text stays text in svg, and the file is the same for the same data.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "megatron_prime", "font.size": 9}):
        for panel in panels:
            for index, group in enumerate([[run] for run in runs] if panel.kind == "stack" else [list(runs)]):
                if not any(_has(run, panel) for run in group):
                    continue
                figure = Figure(figsize=SIZE, layout="constrained")
                _draw(figure.subplots(), panel, group)
                end = f"_{index + 1}" if panel.kind == "stack" and len(runs) > 1 else ""
                files.append(folder / f"{panel.key}{end}.{kind}")
                temporary = files[-1].with_name(f".{files[-1].name}.tmp")
                figure.savefig(
                    temporary, format=kind, dpi=200, metadata={"Date": None} if kind == "svg" else {}
                )
                temporary.replace(files[-1])
    return files


def _has(run: Run, panel: Panel) -> bool:
    table = columns(run.records)
    return any(value is not None for series in panel.series for value in table.get(series.metric, ()))


def _draw(axes: Any, panel: Panel, runs: Sequence[Run]) -> None:  # noqa: ANN401
    scale = 100.0 if panel.is_share else 1.0
    for run_index, run in enumerate(runs):
        table = columns(run.records)
        steps = np.array([record["step"] for record in run.records], dtype=float)
        lines = [(series, _values(table[series.metric])) for series in panel.series if series.metric in table]
        if panel.kind == "stack":
            known = np.any([np.isfinite(values) for _, values in lines], axis=0)
            areas = [np.nan_to_num(values[known]) for _, values in lines]
            axes.stackplot(
                steps[known], *areas, labels=[_plain(series.label) for series, _ in lines], colors=COLOURS
            )
            continue
        for index, (series, values) in enumerate(lines):
            colour = COLOURS[(run_index if len(runs) > 1 else index) % len(COLOURS)]
            name = ", ".join(
                part
                for part in (run.name if len(runs) > 1 else "", series.label if len(lines) > 1 else "")
                if part
            )
            known = np.isfinite(values)
            style = STYLES[index % len(STYLES)] if len(runs) > 1 else "-"
            axes.plot(
                steps[known], scale * values[known], style, color=colour, label=_plain(name), linewidth=1.3
            )
            if series.low in table and series.high in table:
                low, high = _values(table[series.low]), _values(table[series.high])
                axes.fill_between(
                    steps, scale * low, scale * high, where=known, color=colour, alpha=0.18, linewidth=0
                )
    if panel.reference is not None:
        axes.axhline(scale * panel.reference, color="0.5", linestyle=":", linewidth=0.8)
    axes.set_title(panel.title)
    axes.set_xlabel("step")
    axes.set_ylabel(f"% {panel.unit}" if panel.is_share else panel.unit)
    axes.spines[["top", "right"]].set_visible(False)
    if len(axes.get_legend_handles_labels()[1]) > 1:
        axes.legend(frameon=False, fontsize=7)


def _values(values: Sequence[float | None]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], dtype=float)


def _plain(label: str) -> str:
    """Return a label that matplotlib takes literally: `$` would begin a formula, and `_` hides a label."""
    return label.replace("$", r"\$").lstrip("_")
