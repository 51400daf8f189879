"""The entry point of `python -m megatron_prime`, which is also the command that each rank runs."""

import signal
import sys

from megatron_prime.cli import main
from megatron_prime.training.health.stop import EXIT_CODE as STOPPED


def run() -> int:
    """Run the command line, leave the job that it joined, and return the exit code.

    A rank that failed does not leave: it would wait for ranks that may never arrive.
    """
    try:
        code = main()
    except KeyboardInterrupt:
        # The traceback of a command that a user interrupts says nothing.
        return 128 + signal.SIGINT
    # Commands that join no job do not import Megatron, which takes seconds, and it must not be imported here either.
    if code in (0, STOPPED) and "megatron_prime.parallel.topology" in sys.modules:
        from megatron_prime.parallel.topology import leave_job

        leave_job()
    if "megatron_prime.rollout.schedules.one_step_off" in sys.modules:
        from megatron_prime.rollout.schedules.one_step_off import leave_if_sampling

        leave_if_sampling(code)
    return code


if __name__ == "__main__":
    sys.exit(run())
