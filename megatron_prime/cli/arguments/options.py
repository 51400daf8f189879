"""The parsed arguments of a command, and how its words are told apart."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
from click.shell_completion import CompletionItem

WITHOUT_CONFIG = ("doctor", "from-megatron", "quickstart", "verify")
"""Commands that need no configuration file."""


class Options(SimpleNamespace):
    """The parsed arguments of one command: its name as `command`, and its options as further attributes."""

    command: str
    config: Path
    overrides: list[str]

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        """Satisfy type checkers, which cannot know the options of a command."""
        raise AttributeError(name)


def complete_word(_context: click.Context, _parameter: click.Parameter, word: str) -> list[CompletionItem]:
    """Offer keys of the configuration, and files for everything else."""
    from megatron_prime.config.faults import dotted_keys
    from megatron_prime.config.run import PrimeConfig

    keys = [
        CompletionItem(f"{key}=") for key in dotted_keys(PrimeConfig) if word and f"{key}=".startswith(word)
    ]
    return keys or [CompletionItem(word, type="file")]


def is_override(word: str) -> bool:
    """Return whether an argument sets a key of the configuration."""
    return "=" in word and not Path(word).is_file()


def options_of(command: str, values: dict[str, Any]) -> Options:
    """Separate the configuration file from overrides and return all arguments of a command."""
    words = list(values.pop("words"))
    if command == "quickstart" and not all(map(is_override, words)):
        raise click.UsageError(
            "quickstart writes its own configuration: name KEY=VALUE overrides alone",
            click.get_current_context(),
        )
    # `--dry-run` takes an optional folder: a file or an override behind it was not meant as one.
    folder = values.get("dry_run")
    if folder and folder != "-" and (is_override(folder) or Path(folder).suffix == ".toml"):
        words.insert(0, folder)
        values["dry_run"] = "-"
    index = next((index for index, word in enumerate(words) if not is_override(word)), None)
    file = None if index is None else Path(words.pop(index))
    if file is None and command not in WITHOUT_CONFIG:
        raise click.UsageError("the configuration is missing: name a TOML file", click.get_current_context())
    if command == "from-megatron" and file is not None:
        words.insert(0, str(file))
    return Options(command=command, config=file, overrides=words, **values)
