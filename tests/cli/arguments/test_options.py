"""Words of a command line are told apart: the configuration file, overrides, and a folder of --dry-run."""

from pathlib import Path

import pytest

from megatron_prime.cli.arguments.options import is_override, options_of


def test_a_word_with_an_equals_sign_is_an_override_unless_it_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("lr=1.toml").touch()
    assert [is_override(word) for word in ("policy.lr=1", "run.toml", "lr=1.toml", "lr=2.toml")] == [
        True,
        False,
        False,
        True,
    ]


@pytest.mark.parametrize("command", ["doctor", "verify", "quickstart"])
def test_some_commands_need_no_configuration(command):
    options = options_of(command, {"words": ("seed=1",), "other": 2})
    assert (options.config, options.overrides, options.other) == (None, ["seed=1"], 2)
