"""The API keys of attached SGLang servers, from a file that only its owner can read. No message contains a key."""

import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path

from megatron_prime.config.tables.rollout import SGLangConfig

_OPTION = "rollout.sglang.api_key_file"
_MAX_BYTES = 1 << 20


def attached_keys(settings: SGLangConfig) -> Sequence[str]:
    """Return the API key of each server in `settings.urls`; empty strings without `settings.api_key_file`.

    Raises:
        ValueError: The file can't be read, others can read or write it, or it does not have the keys.
    """
    path, num_urls = settings.api_key_file, len(settings.urls)
    if path is None or not settings.urls:
        return [""] * num_urls
    keys = [line for text in _read_private(path).splitlines() if (line := text.strip())]
    if len(keys) not in (1, num_urls):
        raise ValueError(
            f"{_OPTION} = {path} has {len(keys)} lines with keys: it needs one key for all servers, or one line for "
            f"each of the {num_urls} in rollout.sglang.urls"
        )
    if not all(re.fullmatch(r"[!-~]+", key) for key in keys):
        raise ValueError(
            f"{_OPTION} = {path}: a key consists of ASCII characters without spaces; `openssl rand -hex 32` makes one"
        )
    return keys if len(keys) == num_urls else keys * num_urls


def _read_private(path: Path) -> str:
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            # The state of the open file itself, which nobody can replace in between.
            status = os.fstat(file.fileno())
            content = file.read(_MAX_BYTES) if stat.S_ISREG(status.st_mode) else b""
    except OSError as error:
        raise ValueError(f"{_OPTION} = {path} can't be read: {error.strerror}") from None
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{_OPTION} = {path} is no file")
    # Files that are mounted into a container may have any owner, and root reads them all.
    if os.geteuid() != 0 and status.st_uid not in (0, os.geteuid()):
        raise ValueError(f"{_OPTION} = {path} belongs to user {status.st_uid}: name a file of your own")
    if status.st_mode & 0o077:
        raise ValueError(
            f"{_OPTION} = {path} is open to other users (mode {stat.S_IMODE(status.st_mode):o}): make it yours alone "
            "by `chmod 600`, and give the servers new keys if others may have read it"
        )
    if not content.isascii():
        raise ValueError(f"{_OPTION} = {path} is no text of ASCII characters")
    return content.decode("ascii")


def _open_at_once(path: str, flags: int) -> int:
    """Open a file; a named pipe too, which otherwise would wait for a writer."""
    return os.open(path, flags | os.O_NONBLOCK)
