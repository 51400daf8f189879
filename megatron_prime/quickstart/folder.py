"""The inputs of a quickstart in its folder: the generated task, and a configuration to run and to change."""

import shutil
from pathlib import Path

from megatron_prime.observability.durable import replace_file
from megatron_prime.quickstart import TASKS

DEFAULT_ROOT = "runs/quickstart"
"""The folder that the configurations name as they are in the package."""


def packaged_config(task: str = TASKS[0]) -> Path:
    """Return the configuration of a task as it is in the package; its paths are those of the folder DEFAULT_ROOT."""
    return Path(__file__).with_name(f"{task}.toml")


_EARLIER_CONFIG = "quickstart.toml"
"""The name that earlier versions gave to the configuration of the task `arithmetic`."""
CONFIG = packaged_config("arithmetic")
"""The configuration of the task without an environment."""


def clear(root: Path) -> None:
    """Remove the folder of an earlier quickstart, if there is one.

    Raises:
        ValueError: the folder holds other files and nothing of a quickstart.
    """
    names = {"task/sft.jsonl", *(packaged_config(task).name for task in TASKS), _EARLIER_CONFIG}
    if root.is_dir() and any(root.iterdir()) and not any((root / name).exists() for name in names):
        raise ValueError(
            f"--fresh would remove {root}, which is no folder of a quickstart: choose another --root"
        )
    shutil.rmtree(root, ignore_errors=True)


def prepare(root: Path, seed: int, task: str = TASKS[0]) -> Path:
    """Write what is missing of the task and the configuration, and return the path of the configuration.

    A configuration that exists is kept, so that a user can change it and start again.

    Raises:
        ValueError: the path of the folder cannot stand in a TOML file, or the folder holds another task.
    """
    if set(str(root)) & set('"\\\n'):
        raise ValueError(
            f"--root {root}: choose a folder without quotes, backslashes and line breaks in its path"
        )
    files = {packaged_config(other).name: other for other in TASKS} | {_EARLIER_CONFIG: "arithmetic"}
    for name, other in files.items():
        if name != packaged_config(task).name and (root / name).exists():
            raise ValueError(
                f"--root {root} holds the task {other}: choose another folder, or remove its files with --fresh"
            )
    inputs, packaged = root / "task", packaged_config(task)
    config = root / packaged.name
    if not inputs.exists():
        _make_task(inputs, seed, task)
    if not config.exists():
        text = packaged.read_text(encoding="utf-8")
        replace_file(config, text.replace(f'"{DEFAULT_ROOT}/', f'"{root}/'))
    return config


def _make_task(folder: Path, seed: int, task: str) -> None:
    """Write the task to a temporary folder and rename it, so that an interruption leaves no incomplete task."""
    # They import torch and transformers, which a start with a finished task does not need.
    from megatron_prime.quickstart import arithmetic_task, turn_tasks

    temporary = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    if task == "arithmetic":
        arithmetic_task.write_all(temporary, seed)
    else:
        turn_tasks.write_task(temporary, task, seed)
    temporary.rename(folder)
