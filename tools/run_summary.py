"""Why a job ended, from the logs of its ranks, in a few lines.

    python tools/run_summary.py logs/prime-123 --exit-code 137

Tells the exit code's meaning, how far the run came, which ranks said what went wrong (the same words of several ranks
once), and which said nothing after they began.
"""

import argparse
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

MEANINGS = {
    0: "the run is done",
    1: "the run met a fault",
    2: "the configuration has a fault",
    69: "ranks missed another: it, or its node, was lost",
    75: "the run was asked to stop, and saved",
}
STEP = re.compile(r"^step (\d+)/(\d+)\b", re.MULTILINE)
FAULT = re.compile(
    r"^(?:megatron-prime|\w*(?:Error|Exception)\b|srun: error|slurmstepd: error).*", re.MULTILINE
)
TOLD = 6
"""Different faults that are shown."""


def meaning(code: int) -> str:
    """Of an exit code."""
    if code > 128:
        return f"a rank or a node was lost, or ended from outside (signal {code - 128})"
    return MEANINGS.get(code, "unknown")


def summarize(logs: Mapping[int, str], code: int) -> list[str]:
    """Lines of the summary; `logs`: rank -> what it wrote in its last start."""
    lines = [f"ended with exit code {code}: {meaning(code)}"]
    steps = [match for text in logs.values() for match in STEP.findall(text)]
    if steps:
        done, total = max(steps, key=lambda found: int(found[0]))
        lines.append(f"steps done: {done} of {total}")
    else:
        lines.append("no step was done in this start")
    said: dict[str, list[int]] = {}
    for rank, text in logs.items():
        for fault in FAULT.findall(text)[-1:] if code not in (0, 75) else ():
            said.setdefault(re.sub(r"\brank \d+\b", "rank N", fault), []).append(rank)
    for fault, ranks in list(said.items())[:TOLD]:
        lines.append(f"{ranks_in_words(ranks)}: {fault[:300]}")
    if len(said) > TOLD:
        lines.append(f"and {len(said) - TOLD} other faults")
    silent = [rank for rank, text in logs.items() if not text.strip()]
    if silent and code not in (0, 75):
        lines.append(f"{ranks_in_words(silent)} wrote nothing")
    return lines


def ranks_in_words(ranks: Iterable[int]) -> str:
    """1, 2, 3, 7 as "ranks 1-3, 7"."""
    runs: list[list[int]] = []
    for rank in sorted(ranks):
        if runs and rank == runs[-1][-1] + 1:
            runs[-1].append(rank)
        else:
            runs.append([rank])
    words = [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
    return f"rank{'s' if sum(map(len, runs)) > 1 else ''} {', '.join(words)}"


def read_logs(folder: Path) -> dict[int, str]:
    """Rank -> the end of its log."""
    logs = {}
    for path in folder.glob("rank-*.log"):
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - (1 << 18)))
            logs[int(path.stem.removeprefix("rank-"))] = file.read().decode(errors="replace")
    return dict(sorted(logs.items()))


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("logs", type=Path, help="folder with rank-N.log")
    parser.add_argument("--exit-code", type=int, required=True, help="of srun")
    options = parser.parse_args()
    print("\n".join(summarize(read_logs(options.logs), options.exit_code)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
