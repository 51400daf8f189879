"""The switch of `--quiet`: an environment variable, so that the ranks of a job inherit it from their launcher."""

import os

QUIET = "MEGATRON_PRIME_QUIET"


def is_quiet() -> bool:
    """Return whether only warnings and errors are to be printed."""
    return os.environ.get(QUIET, "") not in ("", "0")
