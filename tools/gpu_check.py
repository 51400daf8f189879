"""Everything that one GPU can prove of this checkout: each check in a process of its own, one table, JSON.

    python -m tools.gpu_check --out gpu-check                            # all; under twenty minutes on one H100
    python -m tools.gpu_check --list
    python -m tools.gpu_check --only kernels zero --out gpu-check
    python -m tools.gpu_check --out gpu-check --markdown docs/gpu-results.md
    python -m tools.gpu_check --device cpu --tiny --out gpu-check        # the same code at toy size, no GPU

Needs no network, and sets nothing on the GPU. docs/gpu.md says how to install, and what each goal means. A check that
fails, runs out of memory or hangs is a line of the table, and the next one runs all the same. The exit code is 0 when
nothing failed (what was skipped has not failed), 1 otherwise.
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

CPU_PATIENCE = 3.0
"""Times the deadline, where no GPU does the work."""


def main(arguments: list[str] | None = None) -> int:
    """Run the checks that were asked for."""
    options = _parser().parse_args(arguments)
    if options.child:
        return _run_child(options)
    if options.list:
        for check in CHECKS:
            print(f"{check.name:12} {check.says}{f' (needs {check.needs})' if check.needs else ''}")
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
        print(f"gpu_check: {check.name} ({check.says})", flush=True)
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
    parser.add_argument("--list", action="store_true", help="name the checks and stop")
    parser.add_argument("--only", nargs="+", default=[], metavar="CHECK")
    parser.add_argument(
        "--out", type=Path, default=Path("gpu-check"), help="folder for JSON, logs, scratch files"
    )
    parser.add_argument("--markdown", type=Path, help="write the body of docs/gpu-results.md there")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument(
        "--tiny", action="store_true", help="toy sizes: whether the code runs, and nothing else"
    )
    parser.add_argument("--sglang-python", type=Path, help="interpreter of the engine environment")
    parser.add_argument("--child", metavar="CHECK", help=argparse.SUPPRESS)
    return parser


def _setting(options: argparse.Namespace) -> Setting:
    """Raises ValueError where there is no GPU for what was asked."""
    named = os.environ.get("MEGATRON_PRIME_SGLANG_PYTHON")
    python = options.sglang_python or (Path(named) if named else None)
    if options.device == "cpu" and not options.tiny:
        raise ValueError("real sizes take a CPU days: give --device cpu with --tiny")
    if options.device == "cuda" and not options.child:
        from megatron_prime.parallel.platform import num_gpus

        if not num_gpus():
            raise ValueError("torch sees no GPU: run it on a machine with one, or with --device cpu --tiny")
    # Not resolved: an environment's interpreter is a link that must stay one.
    return Setting(options.device, options.tiny, options.out.resolve(), python and python.absolute())


def _outcome(check: Check, setting: Setting) -> Outcome:
    reason = check.why_not(setting)
    if reason is not None:
        return Outcome(check.name, check.says, (Line(check.says, "skipped", note=reason),), 0.0)
    folder = setting.folder / check.name
    shutil.rmtree(folder, ignore_errors=True)  # what an earlier run of the tool left
    folder.mkdir()
    lines_file, log = folder / "lines.jsonl", folder / "log.txt"
    command = [sys.executable, "-W", "ignore", "-m", "tools.gpu_check", "--child", check.name]
    command += ["--out", str(folder), "--device", setting.device, *["--tiny"] * setting.is_tiny]
    if setting.sglang_python is not None:
        command += ["--sglang-python", str(setting.sglang_python)]
    started = time.monotonic()
    deadline_s = check.deadline_s * (1.0 if setting.is_cuda else CPU_PATIENCE)
    fault = _run(command, log, deadline_s)
    read = lines_file.read_text().splitlines() if lines_file.is_file() else []
    lines = tuple(Line(**{**fields, "series": tuple(fields["series"])}) for fields in map(json.loads, read))
    return Outcome(check.name, check.says, lines, time.monotonic() - started, fault)


def _run(command: list[str], log: Path, deadline_s: float) -> str:
    """Run a child with all that it starts; why it did not end well, or nothing."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    environment |= {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])}
    with log.open("wb") as file:
        child = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        try:
            code = child.wait(deadline_s)
            fault = "" if code == 0 else f"{_ending(code)}: {_last_line(log)}"
        except subprocess.TimeoutExpired:
            fault = f"killed at its deadline of {deadline_s:.0f} s"
        finally:
            # What it left behind would hold the GPU; the group is the child's own.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    return fault


def _ending(code: int) -> str:
    return f"ended by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _last_line(log: Path) -> str:
    words = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return words[-1][:300] if words else "it printed nothing"


def _run_child(options: argparse.Namespace) -> int:
    """One check in this process; its lines are on disk as soon as they are known."""
    (check,) = chosen([options.child])
    setting = _setting(options)
    with (setting.folder / "lines.jsonl").open("w") as file:
        for line in check.load()(setting):
            file.write(json.dumps(asdict(line)) + "\n")
            file.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
