"""The entry point of `python -m megatron_prime`, which is also the command that each rank runs."""

import sys

from megatron_prime.cli import main


def run() -> int:
    """Run the command line, leave the job that it joined, and return the exit code.

    A rank that failed does not leave: it would wait for ranks that may never arrive.
    """
    code = main()
    # Commands that join no job do not import Megatron, which takes seconds, and it must not be imported here either.
    if code == 0 and "megatron_prime.parallel.topology" in sys.modules:
        from megatron_prime.parallel.topology import leave_job

        leave_job()
    return code


if __name__ == "__main__":
    sys.exit(run())
