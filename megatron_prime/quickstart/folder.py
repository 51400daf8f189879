"""The inputs of a quickstart in its folder: the generated task, and a configuration to run and to change."""

import shutil
from pathlib import Path

from megatron_prime.observability.durable import replace_file

CONFIG = Path(__file__).with_name("quickstart.toml")
"""The configuration as it is in the package; its paths are those of the folder `DEFAULT_ROOT`."""
DEFAULT_ROOT = "runs/quickstart"


def prepare(root: Path, seed: int) -> Path:
    """Write what is missing of the task and the configuration, and return the path of the configuration.

    A configuration that exists is kept, so that a user can change it and start again.

    Raises:
        ValueError: the path of the folder cannot stand in a TOML file.
    """
    if set(str(root)) & set('"\\\n'):
        raise ValueError(
            f"--root {root}: choose a folder without quotes, backslashes and line breaks in its path"
        )
    task, config = root / "task", root / "quickstart.toml"
    if not task.exists():
        _make_task(task, seed)
    if not config.exists():
        text = CONFIG.read_text(encoding="utf-8")
        replace_file(config, text.replace(f'"{DEFAULT_ROOT}/', f'"{root}/'))
    return config


def _make_task(folder: Path, seed: int) -> None:
    """Write the task to a temporary folder and rename it, so that an interruption leaves no incomplete task."""
    # It imports torch and transformers, which a start with a finished task does not need.
    from megatron_prime.quickstart.arithmetic_task import write_all

    temporary = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    write_all(temporary, seed)
    temporary.rename(folder)
