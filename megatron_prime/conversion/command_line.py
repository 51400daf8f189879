"""The options and the frame that the conversion tools share."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from megatron_prime.observability.progress import Progress

USAGE_ERROR = 2


def conversion_parser(
    description: str | None, source: str, source_help: str, default_file_mib: int
) -> argparse.ArgumentParser:
    """Return a parser of the arguments that both tools take; a tool may add its own.

    Args:
        description: text of --help.
        source: name of the first positional argument in --help; its value is `options.source`.
        source_help: description of that argument.
        default_file_mib: default of --file-mib.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, metavar=source, help=source_help)
    parser.add_argument("output", type=Path, help="folder to write; must not exist")
    parser.add_argument(
        "--workers", type=int, default=1, help="processes; each holds one tensor or one stored chunk"
    )
    parser.add_argument(
        "--file-mib", type=int, default=default_file_mib, help="approximate size of a data file in MiB"
    )
    parser.add_argument(
        "--compare-logits",
        action="store_true",
        help="also load both models and compare their log-probs on a short sequence",
    )
    return parser


def run_tool(
    name: str, options: argparse.Namespace, convert: Callable[[argparse.Namespace, Progress], float | None]
) -> int:
    """Run a conversion and return the exit code: 0, or 2 after printing what is wrong with the input.

    Args:
        name: name of the tool, put before error messages.
        options: parsed arguments.
        convert: performs the conversion; returns the largest difference of log-probs if it compared the models.
    """
    progress = Progress()
    try:
        difference = convert(options, progress)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"{name}: {error}", file=sys.stderr)  # noqa: T201
        return USAGE_ERROR
    if difference is not None:
        progress.line(f"largest difference of log-probs: {difference:.3g}")
    progress.line(f"{options.source} written to {options.output}, every tensor read back and equal")
    return 0
