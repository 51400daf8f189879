"""Reports of the results of all checks: a table, JSON, and docs/gpu-results.md."""

import hashlib
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from tools.gpu_checks.lines import ROOT, Line, Outcome, Setting

COLUMNS = ("check", "measurement", "", "goal", "result", "note")
WIDTH = 200


def print_table(outcomes: Sequence[Outcome]) -> None:
    """Print all lines as one table."""
    table = Table(*COLUMNS)
    for outcome in outcomes:
        for name, line in _rows(outcome.name, outcome.lines, outcome.fault):
            table.add_row(name, line.what, line.figure, line.goal, line.status, line.note)
        table.add_row("", f"{outcome.seconds:.0f} s", "", "", outcome.status.upper(), "", end_section=True)
    console = Console()
    Console(width=max(console.width, WIDTH)).print(table, markup=False)


def _rows(name: str, lines: Sequence[Line], fault: str) -> list[tuple[str, Line]]:
    broken = [Line("did not finish", "fail", note=fault)] if fault else []
    return [(name, line) for line in (*lines, *broken)]


def as_json(outcomes: Sequence[Outcome], setting: Setting) -> dict[str, Any]:
    """Return all results, including the loss curves, as JSON values."""
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": commit(),
        "device": setting.device,
        "tiny": setting.is_tiny,
        "checks": [
            {
                "name": outcome.name,
                "description": outcome.description,
                "status": outcome.status,
                "seconds": round(outcome.seconds, 1),
                "fault": outcome.fault,
                "lines": [asdict(line) for line in outcome.lines],
            }
            for outcome in outcomes
        ],
    }


def commit() -> str:
    """Return the commit of the checkout; if files were changed, with a hash of the changes."""
    described = _git("describe", "--always", "--dirty", "--abbrev=12").decode().strip() or "unknown"
    if not described.endswith("-dirty"):
        return described
    return f"{described}-{hashlib.sha256(_git('diff', 'HEAD')).hexdigest()[:8]}"


def _git(*arguments: str) -> bytes:
    """Return the output of git; nothing without a repository, or without git."""
    try:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, check=False).stdout
    except FileNotFoundError:
        return b""


def as_markdown(report: dict[str, Any]) -> str:
    """Return the text of docs/gpu-results.md, from what `as_json` returned."""
    sizes = " Toy sizes: measurements of speed mean nothing." if report["tiny"] else ""
    lines = [
        "# Results on one GPU",
        "",
        f"Written by `python -m tools.gpu_check --markdown docs/gpu-results.md` at {report['time']}, commit "
        f"`{report['commit']}`, on `{report['device']}`.{sizes} The goals are those of [gpu.md](gpu.md).",
    ]
    for check in report["checks"]:
        lines += [
            "",
            f"## {check['name']}: {check['status']}",
            "",
            f"{check['description']} ({check['seconds']:.0f} s).",
            "",
        ]
        lines += ["| measurement | | goal | result | note |", "|---|---|---|---|---|"]
        rows = [Line(**{**fields, "series": ()}) for fields in check["lines"]]
        for _, line in _rows(check["name"], rows, check["fault"]):
            cells = (line.what, line.figure, line.goal, line.status, line.note)
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"
