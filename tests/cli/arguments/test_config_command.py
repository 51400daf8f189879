"""A declared command separates its configuration from overrides and options."""

from pathlib import Path

import click
import pytest

from megatron_prime.cli.arguments.config_command import add_config_command, option, path_option
from megatron_prime.cli.arguments.help_style import CommandsUnderHeadings


@pytest.fixture
def program() -> CommandsUnderHeadings:
    program = CommandsUnderHeadings("program")
    options = {"Output": [path_option("-o", "--output"), option("--count", type=int, default=1)]}
    add_config_command(program, "try", "Train", "try it", options, (("once", "megatron-prime try run.toml"),))
    return program


def test_words_and_options_may_stand_in_any_order(program):
    words = ["try", "policy.lr=1", "--count", "3", "run.toml", "-o", "out"]
    options = program.main(words, standalone_mode=False)
    assert (options.command, options.config, options.overrides) == ("try", Path("run.toml"), ["policy.lr=1"])
    assert (options.count, options.output, options.quiet) == (3, Path("out"), False)


def test_a_missing_configuration_is_named(program):
    with pytest.raises(click.UsageError, match="the configuration is missing"):
        program.main(["try", "policy.lr=1"], standalone_mode=False)
