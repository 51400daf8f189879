"""The arguments of all commands, by click. Imports nothing else that is slow: `--help` must not wait for pydantic.

Options, the configuration file and overrides may stand in any order.

- `table`: all commands, with their options, examples and help
- `options`: the parsed arguments of a command
- `config_command`: declares the commands that take a configuration
- `prm_commands`: the commands about a PRM alone
- `formats`: the commands that change the format of a whole checkpoint
- `own_commands`: `help` and `completion`
- `help_style`: the form of every help page
- `parsing`: parses a command line, and explains errors in one line
"""

from megatron_prime.cli.arguments.options import Options
from megatron_prime.cli.arguments.parsing import USAGE_ERROR, parse

__all__ = ["USAGE_ERROR", "Options", "parse"]
