"""What can be known to be wrong with the verifiers before anything starts."""

import importlib.util
import re
import shutil
from collections.abc import Collection, Iterator
from urllib.parse import urlsplit

from megatron_prime.config.tables.reward import RewardConfig
from megatron_prime.rewards.user_function import FUNCTION

_IMPORT_PATH = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


def reward_faults(reward: RewardConfig, known: Collection[str]) -> Iterator[str]:
    """Faults of every verifier that may be asked; `known` are the registered names."""
    names = sorted(set(known) - {FUNCTION})
    for spec in reward.verifiers:
        key = "reward.verifier" if reward.verifier != "auto" else "reward.routes"
        if "://" in spec:
            url = urlsplit(spec)
            if url.scheme not in ("http", "https") or not url.hostname:
                yield f"{key} = {spec!r} is no URL of the form http://host:port/path"
        elif ":" in spec:
            yield from _function_faults(key, spec)
        elif spec not in names:
            yield (
                f"{key} = {spec!r}: known are {', '.join(names)}; a function is package.module:function, "
                "a reward server http://..."
            )
        elif spec == "code":
            yield from _sandbox_faults(reward)


def _function_faults(key: str, spec: str) -> Iterator[str]:
    if not _IMPORT_PATH.fullmatch(spec):
        yield f"{key} = {spec!r} is not of the form package.module:function"
        return
    module = spec.partition(":")[0]
    try:
        is_there = importlib.util.find_spec(module) is not None
    except ImportError:
        is_there = False
    if not is_there:
        yield f"{key} = {spec!r}: there is no module {module}; install it, or put its folder on PYTHONPATH"


def _sandbox_faults(reward: RewardConfig) -> Iterator[str]:
    if reward.code.sandbox == "bubblewrap" and shutil.which("bwrap") is None:
        yield (
            "reward.code.sandbox = 'bubblewrap', but there is no bwrap: install it (apt-get install bubblewrap); "
            "'none-i-accept-the-risk' runs model-written code with the rights of this user"
        )
    for path in (reward.code.python, *reward.code.readable_paths):
        if path is not None and not path.exists():
            yield f"reward.code: {path} does not exist"
