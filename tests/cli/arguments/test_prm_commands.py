"""The commands about a PRM take a configuration and stand under the headings of their kind."""

import pytest

from megatron_prime.cli.arguments import Options, parse
from megatron_prime.cli.arguments.table import top


@pytest.mark.parametrize(
    ("name", "heading"), [("train-prm", "Train"), ("eval-prm", "Evaluate"), ("serve-prm", "Evaluate")]
)
def test_all_take_a_configuration_and_overrides(name, heading):
    options = parse([name, "run.toml", "prm.beta=0.1"])
    assert isinstance(options, Options)
    assert (options.command, str(options.config), options.overrides) == (name, "run.toml", ["prm.beta=0.1"])
    assert top.commands[name].heading == heading  # type: ignore[attr-defined]
