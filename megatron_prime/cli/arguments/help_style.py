"""The form of every help page: one sentence, arguments, options under headings, and examples that can be pasted."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click

NAME = "megatron-prime"
GENERAL = "General"
"""The heading of the options that every command has; it comes last."""
COMMAND_HEADINGS = ("Train", "Evaluate", "Prepare and check", "Convert", "This program")
"""The headings of the commands, in the order in which the main page shows them."""
SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}

Examples = Sequence[tuple[str, str]]
"""Pairs of a purpose and a command line."""


class CommandWithExamples(click.Command):
    """A command whose help page has options under headings, and examples.

    Args:
        name: of the command.
        heading: one of COMMAND_HEADINGS, under which the main page lists the command.
        options: options by heading; further ones in `params` stand under GENERAL.
        examples: see Examples.
        arguments: rows of a name, as the usage line shows it, and a description.
        settings: further arguments of click.Command.
    """

    def __init__(
        self,
        name: str,
        heading: str,
        options: Mapping[str, Sequence[click.Option]],
        examples: Examples,
        arguments: Sequence[tuple[str, str]] = (),
        **settings: Any,  # noqa: ANN401
    ) -> None:
        assert heading in COMMAND_HEADINGS, f"{name}: no heading {heading!r}"
        params = [*settings.pop("params", ()), *(option for group in options.values() for option in group)]
        super().__init__(name, params=params, **settings)
        self.heading = heading
        self.examples = examples
        self._arguments = arguments
        self._options = options

    def get_help_option(self, ctx: click.Context) -> click.Option | None:
        """Return --help, described like the other options."""
        return _described(super().get_help_option(ctx))

    def format_arguments(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the arguments that are no options."""
        if self._arguments:
            with formatter.section("Arguments"):
                formatter.write_dl(list(self._arguments))

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options under their headings, then those of every command."""
        placed = [option for group in self._options.values() for option in group]
        rest = [
            param for param in self.get_params(ctx) if isinstance(param, click.Option) and param not in placed
        ]
        for heading, options in {**self._options, GENERAL: rest}.items():
            _write_options(heading, options, ctx, formatter)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples."""
        write_examples(self.examples, formatter)


class CommandsUnderHeadings(click.Group):
    """The program itself, whose help page lists the commands under headings and shows the first commands to try."""

    def __init__(self, *arguments: Any, examples: Examples = (), **settings: Any) -> None:  # noqa: ANN401
        super().__init__(*arguments, **settings)
        self.examples = examples

    def get_help_option(self, ctx: click.Context) -> click.Option | None:
        """Return --help, described like the other options."""
        return _described(super().get_help_option(ctx))

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands under their headings, then the options."""
        commands = [command for command in self.commands.values() if isinstance(command, CommandWithExamples)]
        width = max(len(command.name or "") for command in commands)
        for heading in COMMAND_HEADINGS:
            rows = [
                # Padded, so that the descriptions of all headings begin in one column.
                ((command.name or "").ljust(width), command.get_short_help_str())
                for command in commands
                if command.heading == heading
            ]
            if rows:
                with formatter.section(heading):
                    formatter.write_dl(rows)
        _write_options(GENERAL, self.get_params(ctx), ctx, formatter)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples, and where to read on."""
        write_examples(self.examples, formatter)


def write_examples(examples: Examples, formatter: click.HelpFormatter) -> None:
    """Write examples as lines that can be pasted into a shell, each below a comment that says its purpose."""
    with formatter.section("Examples"):
        for purpose, command_line in examples:
            # Lines of a command are never wrapped: a pasted one would end at the wrap.
            formatter.write(f"  # {purpose}\n  {command_line}\n")


def _write_options(
    heading: str, options: Iterable[click.Parameter], ctx: click.Context, formatter: click.HelpFormatter
) -> None:
    records = [record for option in options if (record := option.get_help_record(ctx)) is not None]
    if records:
        with formatter.section(heading):
            formatter.write_dl(records)


def _described(option: click.Option | None) -> click.Option | None:
    if option is not None:
        option.help = "show this page"
    return option
