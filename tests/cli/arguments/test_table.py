"""Every command explains itself alike, its examples are valid, and shells complete its words."""

import re
import shlex

import click
import pytest

from megatron_prime.cli.arguments import Options, parse
from megatron_prime.cli.arguments.help_style import COMMAND_HEADINGS, CommandWithExamples
from megatron_prime.cli.arguments.table import top
from megatron_prime.config.faults import dotted_keys
from megatron_prime.config.run import PrimeConfig
from megatron_prime.planning.gpus import KNOWN

WIDTH = 80
PROGRAM = re.compile(r"(?:megatron-prime|-m megatron_prime) ([^)>|&]*)")
"""The program's arguments in an example, which may redirect its output or evaluate it."""
COMMANDS = sorted(top.commands)
EXAMPLES = [
    (name, line)
    for name, command in [("", top), *sorted(top.commands.items())]
    for _, line in getattr(command, "examples", ())
]


def help_page(name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the help page of a command, or of the program, on a terminal of WIDTH columns."""
    monkeypatch.setenv("COLUMNS", str(WIDTH))
    assert parse([name, "--help"] if name else ["--help"]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_examples_and_all_its_options_under_headings(name, capsys, monkeypatch):
    command = top.commands[name]
    assert isinstance(command, CommandWithExamples), f"{name}: declare it with CommandWithExamples"
    assert command.heading in COMMAND_HEADINGS
    page = help_page(name, capsys, monkeypatch)
    headings = re.findall(r"^([A-Z][^:\n]*):$", page, flags=re.MULTILINE)
    assert headings[0] == "Arguments" and headings[-2:] == ["General", "Examples"]
    assert "Options" not in headings, "name the subject of the options"
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.help and option.help[-1] != "." and option.opts[-1] in page, option.name
            assert option.help[:1].islower() or not option.help[1:2].islower(), option.help
    vague = re.findall(r"^  (?:-\w, )?(--\S+) (?:INTEGER|FLOAT|PATH|FILENAME)\b", page, flags=re.MULTILINE)
    assert vague == [], "say by a metavar what the value is: FILE, FOLDER, NUMBER, SECONDS, NAME"


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_a_help_page_fits_a_narrow_terminal(name, capsys, monkeypatch):
    assert [line for line in help_page(name, capsys, monkeypatch).splitlines() if len(line) > WIDTH] == []


@pytest.mark.parametrize(("name", "line"), EXAMPLES, ids=lambda text: text.replace(" ", "_"))
def test_every_example_is_a_valid_command_line(name, line, capsys):
    found = PROGRAM.search(line)
    assert found is not None, f"{line!r} does not call the program"
    words = shlex.split(found[1])
    assert not name or words[0] == name
    options = parse(words)
    assert options == 0 or isinstance(options, Options), capsys.readouterr().err
    for word in [] if options == 0 else options.overrides:
        # A key below a table that users fill, such as that of a benchmark, is known by its table.
        assert any(f"{word}.".startswith((f"{key}=", f"{key}.")) for key in dotted_keys(PrimeConfig)), word


def test_the_main_page_lists_every_command_once(capsys, monkeypatch):
    page = help_page("", capsys, monkeypatch)
    listed = re.findall(r"^  ([a-z][a-z-]*)  ", page, flags=re.MULTILINE)
    assert sorted(listed) == COMMANDS


def test_the_help_of_plan_names_every_gpu(capsys, monkeypatch):
    page = " ".join(help_page("plan", capsys, monkeypatch).split())
    assert [name for name in KNOWN if name not in page] == []


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["tra"], {"train", "train-prm"}),
        (["plan", "--gpu", "A"], {"A100-80G", "A100-40G"}),
        (["plan", "--gpu-s"], {"--gpu-set"}),
        (["check", "--for", "eval"], {"eval", "eval-prm"}),
        (["help", "conv"], {"convert"}),
        (["train", "run.toml", "trainer.num_st"], {"trainer.num_steps="}),
        (["completion", "z"], {"zsh"}),
    ],
)
def test_a_shell_completes_commands_options_values_and_keys(words, expected):
    completer = click.shell_completion.ShellComplete(top, {}, "megatron-prime", "_UNUSED")
    found = {item.value for item in completer.get_completions(words[:-1], words[-1])}
    assert found == expected
