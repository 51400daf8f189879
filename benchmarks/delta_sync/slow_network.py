"""A command with a slow network: its loopback has a limited rate, in a network namespace of its own (Linux, root).

The namespace has no name and ends with the last process in it, however that ends: nothing is left to remove, and
no other process of the machine is slowed down.
"""

import shlex
from collections.abc import Sequence

BURST = "256kb"
"""Bytes that may pass at once: several of the largest packets of the loopback."""


def limited(command: Sequence[str], mbit: int) -> list[str]:
    """Return the command line that runs a command with a loopback of so many Mbit/s, all connections together."""
    limit = f"tc qdisc add dev lo root tbf rate {mbit}mbit burst {BURST} latency 200ms"
    return ["unshare", "--net", "sh", "-c", f"ip link set lo up && {limit} && exec {shlex.join(command)}"]
