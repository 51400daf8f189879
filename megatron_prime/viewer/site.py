"""Writes the pages of runs into a folder: a page of curves, and for each run its logged steps and its problems."""

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from megatron_prime.observability.durable import make_private
from megatron_prime.observability.rollout_log import ROLLOUTS, logged_steps
from megatron_prime.viewer import encoding
from megatron_prime.viewer.curves import curve_data, final_values, idle_shares, time_shares
from megatron_prime.viewer.logged_step import LoggedStep
from megatron_prime.viewer.problems import CHANGES, Problem, ProblemHistory, by_change
from megatron_prime.viewer.runs import METRICS_FILE, Run, finite, open_runs

POLICY = (
    "default-src 'none'; script-src 'self' file:; style-src 'self' file:; img-src 'self' file:; base-uri 'none'; "
    "form-action 'none'; require-trusted-types-for 'script'; trusted-types megatron-prime"
)
"""Content security policy of every page. Pages that are opened as files have no origin that `'self'` could match."""
COLOURS = {
    "process_rewards": "process reward",
    "advantages": "advantage",
    "log_ratio": "log-ratio",
    "entropy": "entropy",
    "gap": "train/rollout gap",
}
"""Name of a quantity in the data -> its name on the page."""
MAX_PROBLEMS = 300
"""Problems of a table; more would make the page slow, and nobody reads them."""
SHOWN_STEPS = 16
_CHANGE_TEXTS = {
    "learned": ("From wrong to right", "The policy has learned them."),
    "forgotten": (
        "From right to wrong",
        "The policy has lost them: look for a change of style or for length.",
    ),
    "unstable": (
        "Back and forth",
        "They changed more than once, as problems do that the policy answers by chance.",
    ),
}
_STATIC = ("view.css", "page.js", "curves.js", "tokens.js", "response.js", "step.js", "icon.svg")
_MARKER = "view.json"
FORMAT = 1
"""Version of the data files; those of another version are written again."""


@dataclass(frozen=True)
class _StepPage:
    """A logged step, as the templates see it."""

    step: int
    href: str
    """Address of the page, from the root of the folder."""
    data: str
    """Address of the data, from the page."""


@dataclass
class _RunPages:
    """A run, as the templates see it."""

    key: str
    name: str
    summary: str
    time_shares: list[tuple[str, float]]
    idle_shares: list[tuple[str, float]]
    steps: list[_StepPage] = field(default_factory=list)
    history: ProblemHistory = field(default_factory=ProblemHistory)
    shown_steps: list[_StepPage | None] = field(default_factory=list)
    """The steps that the page of curves links to: all, or the first and last ones around None."""


def _some_steps(steps: list[_StepPage]) -> list[_StepPage | None]:
    half = SHOWN_STEPS // 2
    return list(steps) if len(steps) <= SHOWN_STEPS else [*steps[:half], None, *steps[-half:]]


class Site:
    """The pages of some runs in one folder. `update` writes what has changed.

    Args:
        folders: The folders of the runs.
        output: Folder of the pages; created if it does not exist.

    Raises:
        ValueError: The output holds other files.
    """

    def __init__(self, folders: Sequence[Path], output: Path) -> None:
        if output.exists() and not (
            output.is_dir() and ((output / _MARKER).exists() or not any(output.iterdir()))
        ):
            raise ValueError(
                f"{output} holds something else than pages of this command: name another --output"
            )
        self.folders = list(folders)
        self.output = output
        self.notices: list[str] = []
        """Everything that could not be shown, and why."""
        self._seen: object = None
        templates = resources.files("megatron_prime.viewer").joinpath("templates")
        self._templates = jinja2.Environment(
            loader=jinja2.FunctionLoader(lambda name: templates.joinpath(name).read_text(encoding="utf-8")),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )

    def update(self) -> bool:
        """Write the pages if a run has changed since the last call, and return whether it has.

        Raises:
            ValueError: A folder is no run, or its metrics are damaged.
        """
        state = [_state(folder) for folder in self.folders]
        if state == self._seen:
            return False
        runs = open_runs(self.folders)
        self.notices = []
        self._prepare()
        pages = [self._write_run(run, f"run{number}") for number, run in enumerate(runs)]
        self._remove_other_runs(len(runs))
        shared = {"runs": pages, "policy": POLICY}
        for page in pages:
            self._write_step_pages(page, shared)
        has_metrics = any(run.records for run in runs)
        self.notices += [
            f"{run.name}: no step has been logged in metrics.jsonl yet" for run in runs if not run.records
        ]
        self._replace("data/curves.js", encoding.script("curves", curve_data(runs)))
        curves = {"final": final_values(runs), "has_metrics": has_metrics, "notices": self.notices}
        self._render(
            "curves.html", "index.html", {**shared, **curves, "root": "", "page": "curves", "run_key": ""}
        )
        self._seen = state
        return True

    def _prepare(self) -> None:
        make_private(self.output)
        for folder in ("data", "static"):
            (self.output / folder).mkdir(exist_ok=True)
        self._replace(_MARKER, json.dumps({"format": FORMAT}).encode())
        static = resources.files("megatron_prime.viewer").joinpath("static")
        for name in _STATIC:
            self._replace(f"static/{name}", static.joinpath(name).read_bytes())

    def _remove_other_runs(self, number: int) -> None:
        """Remove the pages of runs that an earlier call with more of them has written."""
        for folder in (self.output, self.output / "data"):
            for path in folder.glob("run*"):
                if path.name[3:].isdecimal() and int(path.name[3:]) >= number:
                    shutil.rmtree(path)

    def _write_run(self, run: Run, key: str) -> _RunPages:
        page = _RunPages(key, run.name, _summary(run), time_shares(run), idle_shares(run))
        data = self.output / "data" / key
        data.mkdir(exist_ok=True)
        for step, file in run.step_files.items():
            name = f"step-{step:08d}"
            if self._write_step(run, page, file, data / name):
                page.steps.append(_StepPage(step, f"{key}/{name}.html", f"../data/{key}/{name}/"))
        # Steps that a resume has dropped, and the oldest ones, which the log drops when it is full.
        _remove_others(data, {f"step-{page_.step:08d}" for page_ in page.steps})
        _remove_others(
            self.output / key, {f"step-{page_.step:08d}.html" for page_ in page.steps} | {"problems.html"}
        )
        page.shown_steps = _some_steps(page.steps)
        if not run.step_files:
            self.notices.append(f"{run.name}: no responses have been logged, so there are curves alone")
        return page

    def _write_step(self, run: Run, page: _RunPages, file: Path, folder: Path) -> bool:
        """Write the data of a logged step if they are not there yet, and return whether they are."""
        try:
            stat = file.stat()
            step = LoggedStep(file)
        except (ValueError, OSError) as error:
            if file.exists():  # otherwise the log has dropped it in the meantime
                self.notices.append(f"{run.name}: {error}")
            return False
        page.history.add(step)
        source = {"format": FORMAT, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "file": str(file)}
        if _read_json(folder / "source.json") != source:
            _write_data(step, folder, source)
        return True

    def _write_step_pages(self, page: _RunPages, shared: dict[str, Any]) -> None:
        (self.output / page.key).mkdir(exist_ok=True)
        shared = {**shared, "root": "../", "run_key": page.key, "run_name": page.name}
        for number, step in enumerate(page.steps):
            values = {
                "page": "step",
                "step": step,
                "steps": page.steps,
                "previous": page.steps[number - 1] if number else None,
                "next": page.steps[number + 1] if number + 1 < len(page.steps) else None,
                "colours": list(COLOURS.items()),
            }
            self._render("step.html", step.href, {**shared, **values})
        if page.steps:
            problems = page.history.problems()
            values = {
                "page": "problems",
                "summary": _problems_summary(page.history, problems),
                "sections": list(_sections(problems)),
                "pages": {step.step: f"../{step.href}" for step in page.steps},
            }
            self._render("problems.html", f"{page.key}/problems.html", {**shared, **values})

    def _render(self, template: str, name: str, values: dict[str, Any]) -> None:
        text = self._templates.get_template(template).render(values)
        self._replace(name, text.encode("utf-8", "replace"))

    def _replace(self, name: str, content: bytes) -> None:
        """Write a page as a whole. It is not fsynced: after a crash, the same command writes it again."""
        path = self.output / name
        if path.exists() and path.read_bytes() == content:
            return
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_bytes(content)
        temporary.replace(path)


def _write_data(step: LoggedStep, folder: Path, source: dict[str, Any]) -> None:
    """Write the data files of a step into a new folder, which replaces an older one when it is complete."""
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    for number, part in enumerate(step.parts()):
        (temporary / f"texts-{number}.js").write_bytes(encoding.script(f"texts-{number}", part.texts))
        (temporary / f"numbers-{number}.js").write_bytes(encoding.script(f"numbers-{number}", part.numbers))
    (temporary / "index.js").write_bytes(encoding.script("index", step.index()))
    (temporary / "source.json").write_text(json.dumps(source), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)


def _read_json(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _remove_others(folder: Path, names: set[str]) -> None:
    """Remove what an earlier call has written and what no longer belongs to the run."""
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        if path.name not in names:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _state(folder: Path) -> object:
    """Return something that changes when the run writes."""
    return [_state_of(path) for path in (folder / METRICS_FILE, *logged_steps(folder / ROLLOUTS).values())]


def _state_of(path: Path) -> object:
    try:
        stat = path.stat()
    except FileNotFoundError:
        return path.name, None  # there is none yet, or the log has just dropped it
    return path.name, stat.st_mtime_ns, stat.st_size


def _summary(run: Run) -> str:
    if not run.records:
        return "No metrics yet."
    last = run.records[-1]
    words = [f"{len(run.records):,} record{'' if len(run.records) == 1 else 's'}, up to step {last['step']}"]
    for name, text in (
        ("eval/accuracy", "held-out accuracy"),
        ("rollout/accuracy_sampled", "training accuracy"),
    ):
        values = [value for record in run.records if (value := finite(record.get(name))) is not None]
        if len(values) > 1:
            words.append(f"{text} {100 * values[0]:.1f} % at first, {100 * values[-1]:.1f} % at last")
    return "; ".join(words) + "."


def _problems_summary(history: ProblemHistory, problems: Sequence[Problem]) -> str:
    changed = sum(bool(problem.change) for problem in problems)
    if not problems:
        return (
            f"{history.num_problems} problems were logged, each at one step alone, so no change can be seen. Problems "
            "return when training goes through its data more than once."
        )
    return (
        f"{history.num_problems} problems were logged, {len(problems)} of them at several steps, and {changed} "
        "changed."
    )


def _sections(problems: Sequence[Problem]) -> Iterator[dict[str, Any]]:
    groups = by_change(problems)
    for change in CHANGES:
        title, text = _CHANGE_TEXTS[change]
        found = groups[change]
        yield {
            "key": change,
            "title": title,
            "text": text,
            "number": len(found),
            "problems": found[:MAX_PROBLEMS],
        }
