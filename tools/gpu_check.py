"""Check everything about this checkout that GPUs can show: one process per check, one table, one JSON file.

    python -m tools.gpu_check --out gpu-check                            # all; about half an hour on one H100
    python -m tools.gpu_check --minutes 15 --out gpu-check               # the most valuable ones, in 15 minutes in all
    python -m tools.gpu_check --list
    python -m tools.gpu_check --only kernels zero --out gpu-check
    python -m tools.gpu_check --out gpu-check --markdown docs/gpu-results.md
    python -m tools.gpu_check --device cpu --tiny --out gpu-check        # the same code at toy size, no GPU

It needs no network and changes no setting of the GPU. docs/gpu.md describes the installation and the goals. A check
that fails, runs out of memory or hangs becomes a row of the table, and the next check runs nevertheless. Each outcome
is appended to OUT/results.jsonl when its check ends. The same command in the same folder runs what is left: what has
finished at the same commit and on the same device is not run again. The exit code is 0 if nothing failed (a skipped
check has not failed), and 1 otherwise.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from tools.gpu_checks.catalog import CHECKS, Check, chosen
from tools.gpu_checks.lines import ROOT, Outcome, Setting, skipped
from tools.gpu_checks.report import as_json, as_markdown, commit, print_table
from tools.gpu_checks.results import ResultFile, read_lines, to_run

CPU_DEADLINE_FACTOR = 3.0
"""Factor on the deadlines of checks that run on a CPU."""
SPARE_S = 10.0
"""Part of the minutes that is kept for the reports."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    started = time.monotonic()
    options = _parser().parse_args(arguments)
    if options.child:
        return _run_child(options)
    if options.list:
        for check in CHECKS:
            print(f"{check.name:12} {check.description} (about {check.expected_s:.0f} s{_needs(check)})")
        return 0
    try:
        checks = chosen(options.only)
        setting = _setting(options)
    except ValueError as error:
        print(f"gpu_check: {error}", file=sys.stderr)
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    key = {"commit": commit(), "device": setting.device, "tiny": setting.is_tiny, "short": setting.is_short}
    results = ResultFile(setting.folder / "results.jsonl", key)
    end = started + 60 * options.minutes - SPARE_S if options.minutes else None
    outcomes = _run_checks(checks, setting, results, end)
    print_table(outcomes)
    report = as_json(outcomes, setting)
    (options.out / "gpu-check.json").write_text(json.dumps(report, indent=1) + "\n")
    if options.markdown:
        options.markdown.write_text(as_markdown(report))
    return int(any(outcome.status == "fail" for outcome in outcomes))


def _needs(check: Check) -> str:
    gpus = f"; {check.num_gpus} GPUs" if check.num_gpus > 1 else ""
    return f"{gpus}; needs {check.needs}" if check.needs else gpus


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--list", action="store_true", help="list the checks and exit")
    parser.add_argument("--only", nargs="+", default=[], metavar="CHECK")
    parser.add_argument(
        "--minutes",
        type=float,
        metavar="N",
        help="end within N minutes: checks in the order of the list while they fit, with one FP8 recipe",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("gpu-check"), help="folder for the results, logs and scratch files"
    )
    parser.add_argument("--markdown", type=Path, help="write the results as Markdown (docs/gpu-results.md)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="toy sizes: check only that the code runs")
    parser.add_argument("--sglang-python", type=Path, help="interpreter of the engine environment")
    parser.add_argument("--child", metavar="CHECK", help=argparse.SUPPRESS)
    return parser


def _setting(options: argparse.Namespace) -> Setting:
    """Build the setting. Raises ValueError if the options need a GPU and there is none."""
    named = os.environ.get("MEGATRON_PRIME_SGLANG_PYTHON")
    python = options.sglang_python or (Path(named) if named else None)
    if options.minutes is not None and options.minutes <= 0:
        raise ValueError(f"--minutes must be positive, got {options.minutes}")
    if options.device == "cpu" and not options.tiny:
        raise ValueError("real sizes would take days on a CPU: use --device cpu with --tiny")
    found = 2  # Processes of a CPU stand for GPUs.
    if options.device == "cuda":
        # Imported here, because torch takes seconds and --list does not need it.
        from megatron_prime.parallel.platform import num_gpus

        found = num_gpus()
        if not found:
            raise ValueError("torch finds no GPU: use a machine with one, or --device cpu --tiny")
    # absolute(), not resolve(): through its link, an interpreter would not find its virtual environment.
    return Setting(
        options.device,
        options.tiny,
        options.out.resolve(),
        python and python.absolute(),
        num_gpus=found,
        is_short=options.minutes is not None,
    )


def _run_checks(
    checks: Sequence[Check], setting: Setting, results: ResultFile, end: float | None
) -> list[Outcome]:
    """Run the checks that have no outcome yet, and those that did not finish, until `end`; return all outcomes.

    Args:
        checks: in the order of the report.
        setting: of this run.
        results: what is known, and where outcomes are added.
        end: time.monotonic() at which no check may run any more; None for no limit.
    """
    by_name = {check.name: check for check in checks}
    for check in checks:
        results.rescue(check.name, check.description, setting.folder / check.name)
    reasons = {check.name: check.reason_to_skip(setting) for check in checks}
    runnable = [name for name, reason in reasons.items() if reason is None]
    left_out: dict[str, str] = {}
    for name in to_run(runnable, results.latest()):
        check = by_name[name]
        left_s = float("inf") if end is None else end - time.monotonic()
        if left_s < check.expected_s:
            left_out[name] = (
                f"not run: needs about {check.expected_s:.0f} s, {max(0.0, left_s):.0f} s are left"
            )
            continue
        print(f"gpu_check: {check.name} ({check.description})", flush=True)
        outcome = _outcome(check, setting, left_s, results.key)
        results.append(outcome)
        print(f"gpu_check: {check.name}: {outcome.status} after {outcome.seconds:.0f} s", flush=True)
    known = results.latest()
    outcomes = []
    for check in checks:
        reason = reasons[check.name] or (check.name not in known and left_out.get(check.name)) or None
        line = skipped(check.description, reason or "")
        outcomes.append(
            known[check.name] if reason is None else Outcome(check.name, check.description, (line,), 0.0)
        )
    return outcomes


def _outcome(check: Check, setting: Setting, left_s: float, key: dict[str, object]) -> Outcome:
    """Run one check in a child process."""
    folder = setting.folder / check.name
    shutil.rmtree(folder, ignore_errors=True)  # left behind by an earlier run of this tool
    folder.mkdir()
    (folder / "key.json").write_text(json.dumps(key))
    log = folder / "log.txt"
    command = [sys.executable, "-W", "ignore", "-m", "tools.gpu_check", "--child", check.name]
    command += ["--out", str(folder), "--device", setting.device, *["--tiny"] * setting.is_tiny]
    command += ["--minutes", "1"] * setting.is_short
    if setting.sglang_python is not None:
        command += ["--sglang-python", str(setting.sglang_python)]
    started = time.monotonic()
    deadline_s = min(left_s, check.deadline_s * (1.0 if setting.is_cuda else CPU_DEADLINE_FACTOR))
    fault = _run(command, log, deadline_s)
    lines = read_lines(folder / "lines.jsonl")  # A check that was killed has written some of its lines.
    return Outcome(check.name, check.description, lines, time.monotonic() - started, fault)


def _run(command: list[str], log: Path, deadline_s: float) -> str:
    """Run a child process and end everything it started; return why it failed, or an empty string."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    environment |= {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])}
    with (
        log.open("wb") as file,
        # In a new session the child leads its own process group, so that all its descendants can be killed together.
        # When this process ends, however that happens, the kernel closes the pipe, and the child ends its group.
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        ) as child,
    ):
        try:
            code = child.wait(deadline_s)
            fault = "" if code == 0 else f"{_ending(code)}: {_last_line(log)}"
        except subprocess.TimeoutExpired:
            fault = f"killed at its deadline of {deadline_s:.0f} s"
        finally:
            # Processes that the child left behind would occupy the GPU. The process group contains only the child's.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    return fault


def _end_with_parent() -> None:
    """End this process and all that it starts when standard input closes."""

    def watch() -> None:
        while os.read(0, 1):
            continue
        os.killpg(os.getpgrp(), signal.SIGKILL)

    if os.getpgrp() == os.getpid():
        threading.Thread(target=watch, daemon=True).start()


def _ending(code: int) -> str:
    return f"ended by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _last_line(log: Path) -> str:
    words = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return words[-1][:300] if words else "no output"


def _run_child(options: argparse.Namespace) -> int:
    """Run one check in this process, and write each line as soon as it is known: it survives a later crash."""
    _end_with_parent()
    (check,) = chosen([options.child])
    setting = replace(_setting(options), folder=options.out.resolve())
    with (setting.folder / "lines.jsonl").open("w") as file:
        for line in check.load()(setting):
            file.write(json.dumps(asdict(line)) + "\n")
            file.flush()
            os.fsync(file.fileno())
    return 0


if __name__ == "__main__":
    sys.exit(main())
