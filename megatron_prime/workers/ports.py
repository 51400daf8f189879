"""Free ports for processes that are started later."""

import random
import socket

_FIRST, _LAST = 15_000, 32_000
"""Ports below those that Linux gives to outgoing connections (32,768 and up), one of which could take a port before the
process that it is for listens: starting one takes seconds."""
_choose = random.SystemRandom().randrange  # The seeded numbers of this process stay as they are.


def free_port(host: str = "127.0.0.1") -> int:
    """Return a TCP port of one of this machine's addresses that is free at the moment.

    Raises:
        OSError: the address is not this machine's.
    """
    while True:
        port = _choose(_FIRST, _LAST)
        with socket.socket() as probe:
            try:
                probe.bind((host, port))
            except OSError:
                probe.bind((host, 0))  # An address of another machine fails here too.
                continue
        return port
