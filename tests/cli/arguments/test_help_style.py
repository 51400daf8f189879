"""Help pages put options under headings and examples at the end, each on one line."""

import click
import pytest

from megatron_prime.cli.arguments.help_style import CommandsUnderHeadings, CommandWithExamples

LONG = "megatron-prime fly " + " ".join(f"key_{number}=value" for number in range(12))


def command() -> CommandWithExamples:
    return CommandWithExamples(
        "fly",
        "Train",
        {"Height": [click.Option(["--metres"], metavar="NUMBER", help="height")]},
        (("high", "megatron-prime fly --metres 9"), ("with many settings", LONG)),
        [("WORD", "a word")],
        params=[
            click.Argument(["word"], metavar="WORD"),
            click.Option(["-q", "--quiet"], is_flag=True, help="say nothing"),
        ],
        help="Fly.",
        short_help="fly",
    )


def test_a_page_has_its_parts_in_order():
    page = command().get_help(click.Context(command(), info_name="fly"))
    assert page == (
        "Usage: fly [OPTIONS] WORD\n\n  Fly.\n\n"
        "Arguments:\n  WORD  a word\n\n"
        "Height:\n  --metres NUMBER  height\n\n"
        "General:\n  -q, --quiet  say nothing\n  --help       show this page\n\n"
        f"Examples:\n  # high\n  megatron-prime fly --metres 9\n  # with many settings\n  {LONG}"
    )


def test_commands_stand_under_their_headings():
    group = CommandsUnderHeadings("top", commands={"fly": command()}, examples=(("go", "top fly x"),))
    page = group.get_help(click.Context(group, info_name="top"))
    assert "\nTrain:\n  fly  fly\n" in page and page.endswith("Examples:\n  # go\n  top fly x")
    assert "Commands:" not in page and "Convert:" not in page


def test_an_unknown_heading_is_refused():
    with pytest.raises(AssertionError, match="no heading 'Flights'"):
        CommandWithExamples("fly", "Flights", {}, ())
