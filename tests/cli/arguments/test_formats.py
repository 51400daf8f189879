"""The commands that change a format take two folders, and have the file size of their format."""

from pathlib import Path

import pytest

from megatron_prime.cli.arguments import Options, parse
from megatron_prime.cli.arguments.formats import DTYPES
from megatron_prime.conversion import to_hf


@pytest.mark.parametrize(("name", "file_mib"), [("hf-to-megatron", 2048), ("megatron-to-hf", 4768)])
def test_both_share_their_options(name, file_mib):
    options = parse([name, "in", "out", "--workers", "3"])
    assert isinstance(options, Options)
    assert (options.command, options.source, options.output) == (name, Path("in"), Path("out"))
    assert (options.workers, options.file_mib, options.compare_logits) == (3, file_mib, False)


def test_the_types_are_those_of_the_conversion():
    assert tuple(to_hf.DTYPES) == DTYPES


def test_a_missing_folder_is_named(capsys):
    assert parse(["hf-to-megatron", "in"]) == 2
    assert "missing argument 'OUTPUT'" in capsys.readouterr().err
