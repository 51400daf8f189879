"""The arguments of all commands, by click. Imports nothing else that is slow: `--help` must not wait for pydantic.

Options, the configuration file and overrides may stand in any order.

- `table`: all commands, with their options, examples and help
- `own_commands`: `help` and `completion`
- `help_style`: the form of every help page
- `parsing`: parses a command line, and explains errors in one line
"""

from megatron_prime.cli.arguments.parsing import USAGE_ERROR, parse
from megatron_prime.cli.arguments.table import Options

__all__ = ["USAGE_ERROR", "Options", "parse"]
