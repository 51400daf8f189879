import re
import tomllib
from pathlib import Path
from typing import get_args

import pytest

from megatron_prime.config import ConfigError, load_config
from megatron_prime.config.presets import PRESETS, PresetName
from megatron_prime.preflight.algorithm import algorithm_faults

ROOT = Path(__file__).parents[2]
NEEDED = {"istar": ["environment.name=guess_number"], "tools": ["environment.name=guess_number"]}
"""Overrides that a preset cannot hold, because they name the task."""
METHODS = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")


def test_every_name_has_its_preset():
    assert set(get_args(PresetName)) == set(PRESETS)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_visible_in_the_configuration_and_can_be_trained(minimal_toml, name):
    config = load_config(minimal_toml, [f"preset.name={name}", *NEEDED.get(name, [])])
    resolved = config.model_dump(mode="json")
    for section, values in PRESETS[name].values.items():
        assert {key: resolved[section][key] for key in values} == values
    assert list(algorithm_faults(config)) == []
    title, *lines = config.preset_lines()
    assert title == f"preset {name}: {PRESETS[name].method}"
    assert len(lines) == len(PRESETS[name].values)


@pytest.mark.parametrize("name", PRESETS)
def test_the_page_of_methods_has_the_values_of_each_preset(name):
    (section,) = re.findall(rf"^## .*`{name}`.*\n((?:(?!## ).*\n)+)", METHODS, re.MULTILINE)
    (block,) = re.findall(r"```toml\n(.*?)```", section, re.DOTALL)
    assert tomllib.loads(block) == PRESETS[name].values


def test_the_file_and_the_command_line_come_before_the_preset(minimal_toml):
    minimal_toml.write_text(
        minimal_toml.read_text() + '\n[preset]\nname = "tools"\n\n[advantage]\ngamma_process = 0.0\n'
    )
    config = load_config(minimal_toml, ["prm.num_epochs=3"])
    assert (config.advantage.gamma_process, config.prm.num_epochs) == (0.0, 3)
    assert config.advantage.process_credit == "hindsight"
    assert config.preset_lines()[-1] == (
        "  changed by the file or the command line: advantage.gamma_process (preset: 0.5), prm.num_epochs (preset: 2)"
    )


def test_the_resolved_configuration_names_the_preset_and_gives_the_same_run(minimal_toml, tmp_path):
    config = load_config(minimal_toml, ["preset.name=paper", "advantage.whitening=joint"])
    again = type(config).model_validate_json(config.model_dump_json())
    assert again == config


def test_without_a_preset_nothing_is_said(minimal_toml):
    assert load_config(minimal_toml).preset_lines() == []
    assert load_config(minimal_toml, ["preset.name=none"]).preset.name is None


def test_faults_of_the_table_are_reported_as_of_any_other(minimal_toml):
    for override, expected in (
        ("preset.name=papr", "preset.name"),
        ("preset.name=3", "preset.name"),
        ("preset=paper", "preset is a table"),
    ):
        with pytest.raises(ConfigError, match=expected):
            load_config(minimal_toml, [override])


def test_the_settings_for_tools_are_those_that_the_chain_of_the_quickstart_was_tested_with_but_for_whitening():
    """docs/methods.md says why that differs."""
    (file,) = (ROOT / "megatron_prime" / "quickstart").glob("chain*.toml")
    chain = tomllib.loads(file.read_text(encoding="utf-8"))
    preset = PRESETS["tools"].values
    assert preset["advantage"] == {"estimator": "rloo"} | chain["advantage"] | {"whitening": "joint"}
    assert {key: chain["prm"].get(key) for key in ("num_epochs", "update_order")} == {
        key: preset["prm"][key] for key in ("num_epochs", "update_order")
    }
