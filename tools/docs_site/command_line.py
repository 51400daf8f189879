"""The page of all commands, as their `--help` shows them."""

from collections.abc import Iterator

import click

from megatron_prime.cli.arguments.help_style import NAME
from megatron_prime.cli.arguments.table import top

WIDTH = 84
"""Characters of a line of help, which fit the page; examples may be longer."""

INTRODUCTION = """# Command line

All commands with their options, as `--help` shows them. Options, the configuration file and overrides may stand in any
order; an override is `table.key=value` with a TOML value ([all keys](configuration.md)).
"""


def command_line_page() -> str:
    """Return the page as Markdown."""
    sections = [INTRODUCTION, _block(top, None)]
    for command, context in commands():
        sections.append(f"## {command.name}\n\n{_block(command, context)}")
    return "\n\n".join(sections) + "\n"


def commands() -> Iterator[tuple[click.Command, click.Context]]:
    """Yield every visible command with the context of the top level."""
    with _context(top, None) as context:
        for name in top.list_commands(context):
            command = top.get_command(context, name)
            assert command is not None
            if not command.hidden:
                yield command, context


def _block(command: click.Command, parent: click.Context | None) -> str:
    with _context(command, parent) as context:
        return f"```text\n{command.get_help(context)}\n```"


def _context(command: click.Command, parent: click.Context | None) -> click.Context:
    name = command.name if parent else NAME
    # A command remembers the names of its help option from its first context, so this one needs its settings, too.
    settings = command.context_settings | {"terminal_width": WIDTH, "max_content_width": WIDTH}
    return click.Context(command, info_name=name, parent=parent, **settings)
