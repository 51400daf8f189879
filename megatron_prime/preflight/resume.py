"""Check that a run is resumed with the models and verifiers that it was started with.

The first start of a run writes their identity to run_dir/identity.json. A resumed run with another one would continue
with another reference, or with rewards of another meaning, and look as if nothing had happened.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from megatron_prime.config.run import PrimeConfig
from megatron_prime.hf.config_json import ModelFolderError
from megatron_prime.hf.identity import model_identity

IDENTITY = "identity.json"
FORMAT = 1
"""Raise it when an unchanged model or verifier is identified in another way than before."""
OPTIONS = {"policy": "model.path", "prm": "prm.path", "reference": "reference.path"}
ADVICE = "Restore it, or start anew in another run_dir"


def identity_of(config: PrimeConfig, command: str = "train") -> dict[str, Any]:
    """Return what must not change over the attempts of a resumable command.

    Raises:
        ModelFolderError: a model cannot be read.
    """
    models = {
        role: {"path": str(path), **model_identity(path)}
        for role, path in config.model_paths(command).items()
    }
    if command != "train":
        return {"format": FORMAT, "models": models}
    reward = config.reward
    routes = {} if reward.verifier != "auto" else {key: _kind_of(spec) for key, spec in reward.routes.items()}
    return {"format": FORMAT, "models": models, "verifier": _kind_of(reward.verifier), "routes": routes}


def has_identity(run_dir: Path) -> bool:
    """Return whether a run has an identity that can be read."""
    return _saved(run_dir) is not None


def resume_faults(config: PrimeConfig, command: str = "train") -> Iterator[str]:
    """Yield each part of a run's identity that differs from its first start, if it has a checkpoint."""
    folder = config.stage(command).folder
    before = _saved(folder)
    if before is None or not any((folder / "checkpoints").glob("step_*/run.json")):
        return
    try:
        now = identity_of(config, command)
    except (ModelFolderError, OSError):
        return  # preflight.models reports it.
    if before.get("format", 1) == FORMAT:
        yield from _differences(config, folder, before, now)
    else:
        yield (
            f"{folder / IDENTITY} was made by another version of megatron_prime (format {before['format']}, here "
            f"{FORMAT}), so that a changed model or verifier would not be noticed. Resume with that version, or start "
            "anew in another run_dir"
        )


def _differences(
    config: PrimeConfig, folder: Path, before: dict[str, Any], now: dict[str, Any]
) -> Iterator[str]:
    for role, model in now["models"].items():
        old = before["models"].get(role)
        if old is None:
            continue  # The checkpoint says which roles it has.
        changed = [part for part in model if part != "path" and model[part] != old.get(part)]
        if changed:
            yield (
                f"{_option_of(role, config)} = {model['path']}: {' and '.join(changed)} of the {role} are not those of "
                f"{old['path']}, with which the run in {folder} was started. {ADVICE}"
            )
    for key, option in (("verifier", "reward.verifier"), ("routes", "reward.routes")):
        if key not in now:
            continue
        old, current = before.get(key), now[key]
        if isinstance(old, dict) and isinstance(current, dict):
            current = {name: current.get(name) for name in old}  # A route may be added, for a new benchmark.
        if current != old:
            yield (
                f"{option} = {now[key]!r}: the run in {config.run_dir} was started with {before.get(key)!r}, whose "
                f"rewards are others. {ADVICE}"
            )


def _option_of(role: str, config: PrimeConfig) -> str:
    """Return the option that a role's path comes from."""
    if role == "reference" and config.reference.path is None:
        role = "prm"
    if role == "prm" and config.prm.path is None:
        role = "policy"
    return OPTIONS[role]


def _kind_of(spec: str) -> str:
    """Return a verifier's name; of a reward server without its host, which another job may have elsewhere."""
    return f"reward server {urlsplit(spec).path or '/'}" if "://" in spec else spec


def _saved(run_dir: Path) -> dict[str, Any] | None:
    try:
        saved = json.loads((run_dir / IDENTITY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return saved if isinstance(saved, dict) and isinstance(saved.get("models"), dict) else None
