"""Runs of `train` and of `sft` record what they were started with, each in its own folder."""

import json

import pytest

from tests.support.toy_runs import Toy


@pytest.mark.parametrize(
    ("folder", "roles"), [("single", {"policy", "prm", "reference"}), ("sft_run/sft_log", {"policy"})]
)
def test_a_run_records_its_configuration_its_date_and_the_identity_of_its_models(toy: Toy, folder, roles):
    config = json.loads((toy.folder / folder / "config.json").read_text())
    assert config["data"]["date"] is not None
    models = json.loads((toy.folder / folder / "identity.json").read_text())["models"]
    assert set(models) == roles
    assert models["policy"]["path"] == config["model"]["path"]


def test_the_settings_of_sft_do_not_replace_those_of_train(toy: Toy):
    assert not (toy.run_dir("sft_run") / "config.json").exists()
