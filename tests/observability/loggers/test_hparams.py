import pytest
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from megatron_prime.config.run import PrimeConfig
from megatron_prime.observability.catalog import metric_of
from megatron_prime.observability.loggers.hparams import (
    SETTINGS,
    compared_settings,
    hparam_values,
    result_tags,
)
from megatron_prime.observability.loggers.protocol import RunInfo, flat_settings


@pytest.fixture(scope="module")
def info(tmp_path_factory):
    minimal = {"run_dir": tmp_path_factory.mktemp("run"), "model": {"path": "m"}, "trainer": {"num_steps": 3}}
    config = PrimeConfig.model_validate(minimal)
    return RunInfo(config.run_dir, "first", config=config.model_dump(mode="json"), benchmarks=("aime",))


def test_every_compared_setting_exists(info):
    assert set(SETTINGS) <= set(flat_settings(info.config))


def test_settings_have_the_types_that_tensorboard_compares(info):
    settings = compared_settings(info)
    assert settings["prm.enabled"] is True
    assert settings["policy.lr"] == 5e-7
    assert settings["advantage.estimator"] == "rloo"
    other = RunInfo(info.run_dir, config={"policy": {"lr": 1, "clip_low": None}, "rollout": {"engine": "x"}})
    assert compared_settings(other) == {"policy.lr": 1.0, "policy.clip_low": "none"}


def test_results_are_declared_metrics(info):
    assert "eval/aime/accuracy" in result_tags(info)
    assert all(metric_of(tag) is not None for tag in result_tags(info))


def test_the_session_carries_the_values_and_the_experiment_their_names(info):
    experiment, start = (
        HParamsPluginData.FromString(value.metadata.plugin_data.content) for value in hparam_values(info)
    )
    names = [each.name for each in experiment.experiment.hparam_infos]
    assert sorted(names) == sorted(start.session_start_info.hparams) == sorted(SETTINGS)
    assert start.session_start_info.hparams["rollout.group_size"].number_value == 4.0
    assert [each.name.tag for each in experiment.experiment.metric_infos] == result_tags(info)
