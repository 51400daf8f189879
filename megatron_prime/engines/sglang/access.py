"""The secret of a run, and the API keys of its servers, which follow from it.

The secret is drawn at each start and never leaves the memory of the training ranks. Each server process gets a key of
its own through its environment. The key depends on the server's address, which is new at every start, so that a process
that takes over the address of a dead server learns a key that opens nothing else.
"""

import secrets

from megatron_prime.engines.sglang.loader.signing import derive
from megatron_prime.rollout.ranks import Ranks


def shared_secret(ranks: Ranks) -> str:
    """Return a new random secret, equal on every rank. Collective."""
    return ranks.from_first(secrets.token_hex(32))


def key_of(secret: str, url: str) -> str:
    """Return the API key of the server that this run starts at an address."""
    return derive(secret, f"API key of {url}")


def store_key(secret: str) -> str:
    """Return the key with which the values of the run's stores are signed."""
    return derive(secret, "store")
