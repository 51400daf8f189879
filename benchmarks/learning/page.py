"""docs/learning.md: the prose of template.md, with tables and plots that are made from the records.

A line `{{results TASK}}` of the template stands for the tables and the plot of a task, `{{short}}` for a table of all
tasks, `{{counts}}` and `{{tuning}}` for the settings that were tried.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from benchmarks.learning import records
from benchmarks.learning.analysis import AXES, band, counted, crossing, mean_and_half, paired, ratio
from benchmarks.learning.methods import HELD_OUT_SEEDS, METHODS, TUNING_SEEDS, settings_of
from benchmarks.learning.plots import curves
from benchmarks.learning.records import ROOT, Record
from benchmarks.learning.tasks import TASKS

TEMPLATE = Path(__file__).with_name("template.md")
PAGE = ROOT / "docs" / "learning.md"
IMAGES = ROOT / "docs" / "images"
BASE = "rloo"
THRESHOLDS = (0.5, 0.7, 0.8)
COLLAPSED = 0.2
"""A run that ends below this accuracy has collapsed, or never learned."""
COST_AT = 0.7


def write_page() -> None:
    """Write the page and its plots."""
    found = records.read()
    PAGE.write_text(page(TEMPLATE.read_text(encoding="utf-8"), found), encoding="utf-8")
    IMAGES.mkdir(exist_ok=True)
    for task in TASKS:
        plot = plot_of(task, held_out(found, task))
        if plot is not None:
            image_of(task).write_text(plot, encoding="utf-8")


def page(template: str, found: Sequence[Record]) -> str:
    """Return the page."""

    def replaced(match: re.Match[str]) -> str:
        name, _, task = match[1].partition(" ")
        if name == "results":
            return "\n".join(results(task, held_out(found, task)))
        return "\n".join({"tuning": tuning, "short": short, "counts": counts}[name](found))

    return re.sub(r"\{\{(.+?)\}\}", replaced, template)


def held_out(found: Sequence[Record], task: str) -> list[Record]:
    """Return the runs of a task on held-out seeds."""
    return [each for each in found if each.task == task and each.seed in HELD_OUT_SEEDS and not each.tried]


def image_of(task: str) -> Path:
    """Return the path of a task's plot."""
    return IMAGES / f"learning_{task}.svg"


def plot_of(task: str, found: Sequence[Record]) -> str | None:
    """Return the plot of a task; None without runs."""
    runs = {method: [each for each in found if each.method == method] for method in METHODS}
    series = {METHODS[method].title: band(each) for method, each in runs.items() if each}
    label = f"accuracy on new problems, mean of {records.WINDOW} steps"
    return curves(TASKS[task].title, "sampled responses", label, series) if series else None


def results(task: str, found: Sequence[Record]) -> list[str]:
    """Return the tables and the plot of a task, as Markdown."""
    if not found:
        return ["This task has not been run on held-out seeds."]
    lines = [f"![{TASKS[task].title}](images/{image_of(task).name})", "", *_accuracy_table(found)]
    if any(each.method == BASE for each in found):
        lines += ["", *_cost_table(found)]
    return lines


def _by_method(found: Sequence[Record]) -> dict[str, list[Record]]:
    by_method = {method: [each for each in found if each.method == method] for method in METHODS}
    return {method: sorted(each, key=lambda run: run.seed) for method, each in by_method.items() if each}


def _accuracy_table(found: Sequence[Record]) -> list[str]:
    head = ["method", "seeds", "final accuracy", "collapsed", *(f"rollouts to {each}" for each in THRESHOLDS)]
    lines = [f"| {' | '.join([*head, 'localisation'])} |", "|---" * (len(head) + 1) + "|"]
    for method, runs in _by_method(found).items():
        cells = [METHODS[method].title, str(len(runs)), _interval([run.final for run in runs], 3)]
        cells.append(f"{sum(run.final < COLLAPSED for run in runs)}")
        for threshold in THRESHOLDS:
            never = sum(crossing(run, threshold) is None for run in runs)
            needed = _interval([counted(run, threshold) for run in runs], 0)
            cells.append(needed + (f" ({never} never)" if never else ""))
        areas = [each for run in runs for each in run.auc if each is not None]
        cells.append(f"{sum(areas) / len(areas):.2f}" if areas else "")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _cost_table(found: Sequence[Record]) -> list[str]:
    head = [
        *(f"rollouts, {BASE} / method, at {each}" for each in THRESHOLDS),
        *(f"{axis.replace('_', ' ')} at {COST_AT}" for axis in AXES[1:]),
    ]
    lines = [f"| {' | '.join(['method', 'pairs', *head])} |", "|---" * (len(head) + 2) + "|"]
    for method in _by_method(found):
        both = paired(found, [BASE, method]) if method != BASE else {}
        if not both.get(method):
            continue
        base, other = both[BASE], both[method]
        figures = [ratio(base, other, threshold) for threshold in THRESHOLDS]
        figures += [ratio(base, other, COST_AT, axis) for axis in AXES[1:]]
        cells = [f"{mean:.2f} [{low:.2f}, {high:.2f}]" for mean, low, high in figures]
        lines.append(f"| {' | '.join([METHODS[method].title, str(len(other)), *cells])} |")
    return lines


def short(found: Sequence[Record]) -> list[str]:
    """Return the ratios to BASE of each task, as a table, the best method first."""
    lines = [
        f"| task | method | pairs | rollouts to {COST_AT} | CPU seconds to {COST_AT} "
        f"| final, {BASE} | final, the method |",
        "|---" * 7 + "|",
    ]
    for task in TASKS:
        rows = []
        runs = held_out(found, task)
        for method in _by_method(runs):
            both = paired(runs, [BASE, method]) if method != BASE else {}
            if len(both.get(method, ())) < 2:
                continue
            base, other = both[BASE], both[method]
            figures = [ratio(base, other, COST_AT, axis) for axis in ("rollouts", "cpu_seconds")]
            cells = [f"{mean:.2f} [{low:.2f}, {high:.2f}]" for mean, low, high in figures]
            if all(crossing(run, COST_AT) is None for run in (*base, *other)):
                cells = ["no run reached it"] * 2
            finals = [_interval([run.final for run in each], 2) for each in (base, other)]
            row = [TASKS[task].title, METHODS[method].title, str(len(other)), *cells, *finals]
            rows.append((figures[0][0], f"| {' | '.join(row)} |"))
        lines += [row for _, row in sorted(rows, reverse=True)]
    return lines


def counts(found: Sequence[Record]) -> list[str]:
    """Return how many settings of each method were tried on each task, as a list."""
    tried: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for each in found:
        if each.seed in TUNING_SEEDS:
            tried[each.method][each.task].add(" ".join(each.overrides))
    return [
        f"- {METHODS[method].title}: "
        + ", ".join(f"{len(settings)} on `{task}`" for task, settings in by_task.items())
        for method, by_task in tried.items()
    ]


def tuning(found: Sequence[Record]) -> list[str]:
    """Return the table of the settings that were tried on tuning seeds, those of a method together, best first."""
    tried: dict[tuple[str, str, str], list[Record]] = defaultdict(list)
    for each in found:
        if each.seed in TUNING_SEEDS:
            tried[each.task, each.method, " ".join(_shown(each))].append(each)
    of_seeds = " | ".join(f"seed {seed}: final, rollouts to 0.5 / 0.7" for seed in TUNING_SEEDS)
    lines = [
        f"| task | method | settings | {of_seeds} |",
        "|---" * (3 + len(TUNING_SEEDS)) + "|",
    ]
    order = sorted(
        tried, key=lambda key: (list(TASKS).index(key[0]), list(METHODS).index(key[1]), _cost(tried[key]))
    )
    for task, method, settings in order:
        runs = {run.seed: run for run in tried[task, method, settings]}
        cells = [_run_cell(runs[seed]) if seed in runs else "" for seed in TUNING_SEEDS]
        lines.append(f"| {' | '.join([task, method, f'`{settings}`', *cells])} |")
    return lines


def _shown(record: Record) -> list[str]:
    """Return the settings that differ from those that the method has now on this task."""
    final = settings_of(record.method, record.task)
    own = dict(each.split("=", 1) for each in record.overrides)
    differing = [f"{key}={value}" for key, value in own.items() if final.get(key) != value]
    return [*differing, *(f"without {key}" for key in final if key not in own)] or ["as above"]


def _cost(runs: Sequence[Record]) -> float:
    return sum(counted(run, 0.5) + counted(run, 0.7) for run in runs) / len(runs)


def _run_cell(run: Record) -> str:
    needed = " / ".join(
        "never" if (each := crossing(run, at)) is None else f"{each:,.0f}" for at in (0.5, 0.7)
    )
    return f"{run.final:.2f}, {needed}"


def _interval(values: Sequence[float], digits: int) -> str:
    mean, half = mean_and_half(values)
    return f"{mean:,.{digits}f}" + (f" ± {half:,.{digits}f}" if half == half else "")
