"""Check everything about this checkout that one GPU can show: one process per check, one table, one JSON file.

    python -m tools.gpu_check --out gpu-check                            # all; under twenty minutes on one H100
    python -m tools.gpu_check --list
    python -m tools.gpu_check --only kernels zero --out gpu-check
    python -m tools.gpu_check --out gpu-check --markdown docs/gpu-results.md
    python -m tools.gpu_check --device cpu --tiny --out gpu-check        # the same code at toy size, no GPU

It needs no network and changes no setting of the GPU. docs/gpu.md describes the installation and the goals. A check
that fails, runs out of memory or hangs becomes a row of the table, and the next check runs nevertheless. The exit code
is 0 if nothing failed (a skipped check has not failed), and 1 otherwise.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

from tools.gpu_checks.catalog import CHECKS, Check, chosen
from tools.gpu_checks.lines import ROOT, Line, Outcome, Setting
from tools.gpu_checks.report import as_json, as_markdown, print_table

CPU_DEADLINE_FACTOR = 3.0
"""Factor on the deadlines of checks that run on a CPU."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    options = _parser().parse_args(arguments)
    if options.child:
        return _run_child(options)
    if options.list:
        for check in CHECKS:
            print(f"{check.name:12} {check.description}{f' (needs {check.needs})' if check.needs else ''}")
        return 0
    try:
        checks = chosen(options.only)
        setting = _setting(options)
    except ValueError as error:
        print(f"gpu_check: {error}", file=sys.stderr)
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    outcomes = []
    for check in checks:
        print(f"gpu_check: {check.name} ({check.description})", flush=True)
        outcomes.append(_outcome(check, setting))
    print_table(outcomes)
    report = as_json(outcomes, setting)
    (options.out / "gpu-check.json").write_text(json.dumps(report, indent=1) + "\n")
    if options.markdown:
        options.markdown.write_text(as_markdown(report))
    return int(any(outcome.status == "fail" for outcome in outcomes))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--list", action="store_true", help="list the checks and exit")
    parser.add_argument("--only", nargs="+", default=[], metavar="CHECK")
    parser.add_argument(
        "--out", type=Path, default=Path("gpu-check"), help="folder for the JSON file, logs and scratch files"
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
    if options.device == "cpu" and not options.tiny:
        raise ValueError("real sizes would take days on a CPU: use --device cpu with --tiny")
    if options.device == "cuda" and not options.child:
        # Imported here, because torch takes seconds and --list does not need it.
        from megatron_prime.parallel.platform import num_gpus

        if not num_gpus():
            raise ValueError("torch finds no GPU: use a machine with one, or --device cpu --tiny")
    # absolute(), not resolve(): through its link, an interpreter would not find its virtual environment.
    return Setting(options.device, options.tiny, options.out.resolve(), python and python.absolute())


def _outcome(check: Check, setting: Setting) -> Outcome:
    """Run one check in a child process, unless something it needs is missing."""
    reason = check.reason_to_skip(setting)
    if reason is not None:
        return Outcome(check.name, check.description, (Line(check.description, "skipped", note=reason),), 0.0)
    folder = setting.folder / check.name
    shutil.rmtree(folder, ignore_errors=True)  # left behind by an earlier run of this tool
    folder.mkdir()
    lines_file, log = folder / "lines.jsonl", folder / "log.txt"
    command = [sys.executable, "-W", "ignore", "-m", "tools.gpu_check", "--child", check.name]
    command += ["--out", str(folder), "--device", setting.device, *["--tiny"] * setting.is_tiny]
    if setting.sglang_python is not None:
        command += ["--sglang-python", str(setting.sglang_python)]
    started = time.monotonic()
    deadline_s = check.deadline_s * (1.0 if setting.is_cuda else CPU_DEADLINE_FACTOR)
    fault = _run(command, log, deadline_s)
    # A check that was killed has written some of its lines.
    read = lines_file.read_text().splitlines() if lines_file.is_file() else []
    lines = tuple(Line(**{**fields, "series": tuple(fields["series"])}) for fields in map(json.loads, read))
    return Outcome(check.name, check.description, lines, time.monotonic() - started, fault)


def _run(command: list[str], log: Path, deadline_s: float) -> str:
    """Run a child process and end everything it started; return why it failed, or an empty string."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    environment |= {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])}
    with log.open("wb") as file:
        # In a new session the child leads its own process group, so that all its descendants can be killed together.
        child = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
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


def _ending(code: int) -> str:
    return f"ended by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _last_line(log: Path) -> str:
    words = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return words[-1][:300] if words else "no output"


def _run_child(options: argparse.Namespace) -> int:
    """Run one check in this process, and write each line as soon as it is known: it survives a later crash."""
    (check,) = chosen([options.child])
    setting = _setting(options)
    with (setting.folder / "lines.jsonl").open("w") as file:
        for line in check.load()(setting):
            file.write(json.dumps(asdict(line)) + "\n")
            file.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
