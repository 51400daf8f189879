"""Declares the commands that take a configuration and overrides."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from megatron_prime.cli.arguments.help_style import CommandsUnderHeadings, CommandWithExamples, Examples
from megatron_prime.cli.arguments.options import Options, complete_word, options_of

CONFIG_ROW = ("CONFIG", "TOML file of the run")
OVERRIDE_ROW = ("KEY=VALUE", "a setting that replaces the file's, such as policy.lr=1e-6")


def add_config_command(
    program: CommandsUnderHeadings,
    name: str,
    heading: str,
    text: str,
    options: Mapping[str, Sequence[click.Option]],
    examples: Examples,
    metavar: str = "CONFIG [KEY=VALUE]...",
) -> None:
    """Add a command that takes a configuration, overrides and these options."""

    def callback(**values: Any) -> Options:  # noqa: ANN401
        return options_of(name, values)

    words = click.Argument(["words"], nargs=-1, metavar=metavar, shell_complete=complete_word)
    quiet = click.Option(["-q", "--quiet"], is_flag=True, help="print warnings and errors alone")
    program.add_command(
        CommandWithExamples(
            name,
            heading,
            options,
            examples,
            [CONFIG_ROW, OVERRIDE_ROW] if "CONFIG" in metavar else [OVERRIDE_ROW],
            params=[words, quiet],
            callback=callback,
            help=f"{text[0].upper()}{text[1:]}.",
            short_help=text,
        )
    )


def option(*names: str, **settings: Any) -> click.Option:  # noqa: ANN401
    """Return an option with the settings of click."""
    return click.Option(list(names), **settings)


def dry_run_option() -> click.Option:
    """Return the option with which a command only prints what it would start; see `options_of`."""
    return option(
        "--dry-run",
        is_flag=False,
        flag_value="-",
        metavar="[FOLDER]",
        help="start nothing: print the arithmetic, the process map and the commands (and write them to FOLDER)",
    )


def path_option(*names: str, **settings: Any) -> click.Option:  # noqa: ANN401
    """Return an option that names a file or a folder, which shells complete."""
    return click.Option(list(names), type=click.Path(path_type=Path), **settings)
