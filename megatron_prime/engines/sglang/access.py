"""The secret of a run's servers, and the API keys that follow from it or come from a file.

The secret is drawn at each start and never leaves the memory of the training ranks. Each server process gets a key of
its own through its environment. The key depends on the server's address, which is new at every start, so that a process
that takes over the address of a dead server learns a key that opens nothing else.
"""

import secrets
from collections.abc import Sequence
from pathlib import Path

from megatron_prime.config.tables.rollout import SGLangConfig
from megatron_prime.engines.sglang.loader.signing import derive
from megatron_prime.rollout.ranks import Ranks


def shared_secret(ranks: Ranks) -> str:
    """Return a new random secret, equal on every rank. Collective."""
    [secret] = ranks.gather_all([secrets.token_hex(32)] if ranks.rank == 0 else [])
    return secret


def key_of(secret: str, url: str) -> str:
    """Return the API key of the server that this run starts at an address."""
    return derive(secret, f"API key of {url}")


def store_key(secret: str) -> str:
    """Return the key with which the values of the run's stores are signed."""
    return derive(secret, "store")


def attached_keys(settings: SGLangConfig) -> Sequence[str]:
    """Return the API key of each server in `settings.urls`; empty strings without `settings.api_key_file`.

    Raises:
        ValueError: The file can't be read, others may read it, or it has the wrong number of keys.
    """
    num_urls = len(settings.urls)
    if settings.api_key_file is None or not settings.urls:
        return [""] * num_urls
    keys = _read_private(settings.api_key_file).split()
    if len(keys) not in (1, num_urls):
        raise ValueError(
            f"rollout.sglang.api_key_file = {settings.api_key_file} has {len(keys)} lines with keys; it needs one key "
            f"for all servers, or one line for each of the {num_urls} in rollout.sglang.urls"
        )
    return keys if len(keys) == num_urls else keys * num_urls


def _read_private(path: Path) -> str:
    try:
        mode = path.stat().st_mode
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"rollout.sglang.api_key_file = {path} can't be read: {error}") from error
    if mode & 0o077:
        raise ValueError(
            f"rollout.sglang.api_key_file = {path} can be read by other users: run `chmod 600 {path}`, and give the "
            "servers new keys if others have access to this machine"
        )
    return text
