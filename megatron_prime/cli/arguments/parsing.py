"""Parses a command line, and explains in one line what is wrong with it."""

import sys
from collections.abc import Sequence
from pathlib import Path

import click
from click.exceptions import NoArgsIsHelpError

from megatron_prime.cli.arguments.help_style import NAME
from megatron_prime.cli.arguments.options import Options, is_override
from megatron_prime.cli.arguments.table import top

USAGE_ERROR = 2
FILE_OPTIONS = ("c", "config", "config_file", "config_name", "config_path", "f", "file")
"""Options that name the configuration file in other systems."""
COMMANDS_ELSEWHERE = {
    **dict.fromkeys(("fit", "ppo", "resume", "rl", "run", "start"), "train"),
    **dict.fromkeys(("finetune", "fine-tune"), "sft"),
    **dict.fromkeys(("test", "validate", "lint"), "check"),
    **dict.fromkeys(("estimate", "memory", "layouts"), "plan"),
    **dict.fromkeys(("env", "info", "diagnose"), "doctor"),
    **dict.fromkeys(("export", "merge", "to-hf"), "convert"),
    **dict.fromkeys(("show", "inspect", "plot", "dashboard"), "view"),
}
"""Names that other systems give to commands, with ours."""


def parse(arguments: Sequence[str] | None = None) -> Options | int:
    """Return the parsed arguments, by default those of this process.

    Returns:
        The arguments, or the exit code if nothing is left to do: 0 after --help and the like, USAGE_ERROR after a
        line on stderr that says what is wrong.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    try:
        result = top.main(args=words, prog_name=NAME, standalone_mode=False)
    except click.UsageError as error:
        # Pydantic takes a while to import.
        from megatron_prime.config.redaction import redact

        command = error.ctx.command_path if error.ctx else NAME
        text = redact(_explain(error, words).rstrip("."))
        print(f"{NAME}: {text[0].lower()}{text[1:]} (see {command} --help)", file=sys.stderr)  # noqa: T201
        return USAGE_ERROR
    return result if isinstance(result, Options) else result or 0


def _explain(error: click.UsageError, words: Sequence[str]) -> str:
    """Return the message of an error, or a better one for what users of other systems write."""
    if isinstance(error, NoArgsIsHelpError):
        return f"name a command: {', '.join(top.commands)}"
    if isinstance(error, click.NoSuchCommand):
        return _explain_command(error)
    if not isinstance(error, click.NoSuchOption) or error.possibilities:
        # click writes an error over several lines if it lists many possibilities.
        return " ".join(error.format_message().split())
    # Of `-policy.lr=1`, the error names the first letter alone.
    option = next(word for word in words if word.startswith(error.option_name)).partition("=")[0]
    name = option.lstrip("-").replace("-", "_")
    if name in FILE_OPTIONS:
        return f"no option {option}: name the configuration file without an option"
    from megatron_prime.config.faults import key_suggestions  # pydantic is slow to import

    keys = key_suggestions(name)
    if not keys:
        return error.format_message()
    ways = " or ".join(f"{key}=VALUE" for key in keys)
    return f"no option {option}: settings are written without dashes: {ways}"


def _explain_command(error: click.NoSuchCommand) -> str:
    name = error.command_name
    if is_override(name) or Path(name).suffix == ".toml":
        return f"name a command before {name!r}, such as {NAME} train {name}"
    meant = COMMANDS_ELSEWHERE.get(name)
    return f"no such command {name!r}. Did you mean {meant!r}?" if meant else error.format_message()
