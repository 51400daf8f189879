"""The page of the command line shows the help of every command."""

from megatron_prime.cli.arguments.table import top
from tools.docs_site.command_line import WIDTH, command_line_page, commands

PAGE = command_line_page()


def test_every_command_and_every_option_is_shown():
    assert [command.name for command, _ in commands()] == sorted(top.commands)
    for command, _ in commands():
        section = PAGE.partition(f"\n## {command.name}\n")[2].partition("\n## ")[0]
        assert f"Usage: megatron-prime {command.name} " in section
        for parameter in command.params:
            for name in parameter.opts if parameter.param_type_name == "option" else ():
                assert name in section


def test_the_help_fits_the_page():
    blocks = PAGE.split("```")[1::2]
    assert max(len(line) for block in blocks for line in block.splitlines()) <= WIDTH
