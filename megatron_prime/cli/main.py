"""The command line: `megatron-prime COMMAND CONFIG [section.key=value ...]`.

Arguments are parsed before anything slow is imported, so that --help and shell completion answer at once.
"""

import os
from collections.abc import Sequence

from megatron_prime.cli.arguments import parse
from megatron_prime.cli.launch import RESUMABLE, accept_interrupts, die_with_launcher, is_rank
from megatron_prime.training.health.stop import listen


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    # Models and data are local files: a request to a hub would hang on compute nodes without internet access.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    die_with_launcher()
    options = parse(arguments)
    if isinstance(options, int):
        return options
    if is_rank() and options.command in RESUMABLE:
        listen()  # early, so that a request during the start leads to the same exit code as later
    accept_interrupts()
    # Pydantic takes a while to import.
    from megatron_prime.cli.commands import run_command
    from megatron_prime.config.quiet import QUIET

    if options.quiet:
        os.environ[QUIET] = "1"  # ranks that this process starts inherit it
    return run_command(options)
