"""The command line of the benchmark; see the package."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.controller.report import alive_table, host_table, tensor_table

ROOT = Path(__file__).parents[2]
RESULT = ROOT / "benchmarks" / "results" / "controller.md"
SIZES = (16, 256, 4096, 16384)
LONGEST = 8192
TEMPLATE = Path(__file__).with_name("template.md")


def main() -> None:
    """Measure all sizes and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.controller")
    parser.add_argument("--before", type=Path, help="work tree of the commit to compare to")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, metavar="NUMBER")
    parser.add_argument("--longest", type=int, default=LONGEST, metavar="NUMBER", help="tokens of a response")
    parser.add_argument(
        "--tensors",
        type=int,
        default=256,
        metavar="NUMBER",
        help="largest size whose whole step is measured too",
    )
    parser.add_argument(
        "--full", action="store_true", help="also the largest size with the longest responses"
    )
    parser.add_argument("--kept", type=Path, help="file of results so far, which is written and read again")
    options = parser.parse_args()
    trees = {"after": ROOT} if options.before is None else {"before": options.before.resolve(), "after": ROOT}
    kept = json.loads(options.kept.read_text()) if options.kept and options.kept.exists() else {}
    for size in options.sizes:
        for version, tree in trees.items():
            for is_full in (False, True) if options.full and size == max(options.sizes) else (False,):
                key = f"{version} {size} {is_full}"
                if key not in kept and not (is_full and version == "before"):
                    has_tensors = size <= options.tensors and not is_full
                    kept[key] = measured(tree, size, options.longest, is_full, has_tensors)
                    print(key, file=sys.stderr)
                if options.kept:
                    options.kept.write_text(json.dumps(kept))
    RESULT.write_text(page(kept, " --before FOLDER" * (options.before is not None), options.longest))


def page(kept: dict[str, Any], arguments: str, longest: int) -> str:
    """Return the text of the page."""
    by_version: dict[str, list[Any]] = {}
    for key, found in kept.items():
        by_version.setdefault(key.split()[0], []).append(found)
    largest = max(
        (each for each in by_version["after"] if each["phases"]), key=lambda each: each["responses"]
    )
    return TEMPLATE.read_text().format(
        arguments=arguments,
        longest=longest,
        host="\n".join(host_table(by_version)),
        tensors="\n".join(tensor_table(by_version)),
        responses=largest["responses"],
        alive="\n".join(alive_table(largest)),
    )


def measured(tree: Path, size: int, longest: int, is_full: bool, has_tensors: bool) -> dict[str, Any]:
    """Return the measurements of a step with the `megatron_prime` of a tree, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        # This benchmark is imported from the current folder, `megatron_prime` from the tree.
        Path(folder, "benchmarks").symlink_to(ROOT / "benchmarks")
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.controller.step"]
        command += [str(size), str(longest), folder]
        done = subprocess.run(
            [*command, *["--full"] * is_full, *["--tensors"] * has_tensors],
            env=os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"},
            cwd=folder,
            stdout=subprocess.PIPE,
            check=True,
        )
    return json.loads(done.stdout)


if __name__ == "__main__":
    main()
