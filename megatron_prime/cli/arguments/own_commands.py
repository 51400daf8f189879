"""The commands about the program itself: its help pages and the completion of its words in shells."""

import sys

import click
from click.shell_completion import get_completion_class

from megatron_prime.cli.arguments.help_style import NAME, CommandsUnderHeadings, CommandWithExamples

SHELLS = ("bash", "zsh", "fish")


@click.pass_context
def _help(context: click.Context, name: str | None) -> None:
    program = context.parent
    assert program is not None and isinstance(program.command, CommandsUnderHeadings)
    if name is None:
        click.echo(program.get_help())
        return
    _, command, _ = program.command.resolve_command(program, [name])
    assert command is not None
    with click.Context(command, info_name=name, parent=program) as inner:
        click.echo(command.get_help(inner))


@click.pass_context
def _completion(context: click.Context, shell: str) -> None:
    kind = get_completion_class(shell)
    assert kind is not None and context.parent is not None
    script = kind(context.parent.command, {}, NAME, "_MEGATRON_PRIME_COMPLETE")
    # click's source() for bash starts bash to learn its version; the text alone needs no shell.
    sys.stdout.write(script.source_template % script.source_vars() + "\n")


def _names(context: click.Context, _parameter: click.Parameter, word: str) -> list[str]:
    assert context.parent is not None and isinstance(context.parent.command, CommandsUnderHeadings)
    return [name for name in context.parent.command.commands if name.startswith(word)]


def add_own_commands(program: CommandsUnderHeadings) -> None:
    """Add `help` and `completion`."""
    program.add_command(
        CommandWithExamples(
            "help",
            "This program",
            {},
            (("all commands", "megatron-prime help"), ("one command", "megatron-prime help train")),
            [("COMMAND", "name of a command; without one, all commands are listed")],
            params=[click.Argument(["name"], required=False, metavar="[COMMAND]", shell_complete=_names)],
            callback=_help,
            help="Show the options and examples of a command, or all commands.",
            short_help="show the options and examples of a command",
        )
    )
    program.add_command(
        CommandWithExamples(
            "completion",
            "This program",
            {},
            (
                (
                    "bash, in this shell; in ~/.bashrc for all",
                    'eval "$(megatron-prime completion bash)"',
                ),
                ("zsh, in ~/.zshrc behind compinit", 'eval "$(megatron-prime completion zsh)"'),
                ("fish, in ~/.config/fish/config.fish", "megatron-prime completion fish | source"),
            ),
            [("SHELL", "bash, zsh or fish")],
            params=[click.Argument(["shell"], type=click.Choice(SHELLS), metavar="SHELL")],
            callback=_completion,
            help="Print a script that completes commands, options, files and configuration keys in a shell.",
            short_help="print a script that completes commands, options and keys in a shell",
        )
    )
