"""Summarize why a job ended, from the logs of its ranks.

    python tools/run_summary.py logs/prime-123 --exit-code 137

Prints the meaning of the exit code, the last finished step, the error messages (once per message, with the ranks that
printed it), and the ranks whose logs are empty.
"""

import argparse
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

MEANINGS = {
    0: "the run is finished",
    1: "the run failed",
    2: "the configuration is invalid",
    69: "a rank or its node was lost, and the other ranks stopped",
    71: "out of memory",
    75: "the run was asked to stop, and saved a checkpoint",
}
"""Exit code of the command line -> meaning."""
STEP = re.compile(r"^step (\d+)/(\d+)\b", re.MULTILINE)
ERROR = re.compile(
    r"^(?:megatron-prime|[\w.]*(?:Error|Exception)\b|srun: error|slurmstepd\S*: error).*", re.MULTILINE
)
OUT_OF_MEMORY = re.compile(
    r"^(?:megatron-prime.*\bout of .*memory|slurmstepd.*(?:oom.kill|memory limit)).*", re.MULTILINE
)
"""Message about memory that ran out. It is the cause, whatever else a rank printed after it."""
MAX_ERRORS_SHOWN = 6
"""Number of different error messages in a summary."""


def meaning(code: int) -> str:
    """Return the meaning of an exit code."""
    if code > 128:
        return f"a rank or a node was lost or killed (signal {code - 128})"
    return MEANINGS.get(code, "unknown")


def summarize(logs: Mapping[int, str], code: int) -> list[str]:
    """Return the lines of the summary.

    Args:
        logs: rank -> its log since the last start.
        code: exit code of the job.
    """
    lines = [f"ended with exit code {code}: {meaning(code)}"]
    steps = [match for text in logs.values() for match in STEP.findall(text)]
    if steps:
        done, total = max(steps, key=lambda found: int(found[0]))
        lines.append(f"steps finished: {done} of {total}")
    else:
        lines.append("no step was finished since the last start")
    # Messages that differ only in the rank are the same error.
    ranks_of_error: dict[str, list[int]] = {}
    for rank, text in logs.items():
        found = (code == 71 and OUT_OF_MEMORY.findall(text)) or ERROR.findall(text)
        for error in found[-1:] if code not in (0, 75) else ():
            ranks_of_error.setdefault(re.sub(r"\brank \d+\b", "rank N", error), []).append(rank)
    for error, ranks in list(ranks_of_error.items())[:MAX_ERRORS_SHOWN]:
        lines.append(f"{format_ranks(ranks)}: {error[:300]}")
    if len(ranks_of_error) > MAX_ERRORS_SHOWN:
        lines.append(f"and {len(ranks_of_error) - MAX_ERRORS_SHOWN} other errors")
    silent = [rank for rank, text in logs.items() if not text.strip()]
    if silent and code not in (0, 75):
        lines.append(f"{format_ranks(silent)} wrote nothing")
    return lines


def format_ranks(ranks: Iterable[int]) -> str:
    """Format ranks as ranges, such as "ranks 1-3, 7"."""
    runs: list[list[int]] = []
    for rank in sorted(ranks):
        if runs and rank == runs[-1][-1] + 1:
            runs[-1].append(rank)
        else:
            runs.append([rank])
    words = [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
    return f"rank{'s' if sum(map(len, runs)) > 1 else ''} {', '.join(words)}"


def read_logs(folder: Path) -> dict[int, str]:
    """Return the last 256 KiB of each rank's log, by rank."""
    logs = {}
    for path in folder.glob("rank-*.log"):
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - (1 << 18)))
            logs[int(path.stem.removeprefix("rank-"))] = file.read().decode(errors="replace")
    return dict(sorted(logs.items()))


def main() -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("logs", type=Path, help="folder with the files rank-N.log")
    parser.add_argument("--exit-code", type=int, required=True, help="exit code of srun")
    options = parser.parse_args()
    print("\n".join(summarize(read_logs(options.logs), options.exit_code)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
