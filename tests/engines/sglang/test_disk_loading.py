"""Servers load checkpoints from files, prove the version, and keep their weights when a checkpoint is bad."""

import os
import signal
from functools import partial

import pytest

from megatron_prime.engines.sglang.client import ServerRefusedError
from megatron_prime.engines.sglang.disk_loading import load, load_everywhere, reload
from megatron_prime.rollout.engine import WeightSyncError
from tests.support.sglang_live import rename


@pytest.mark.slow
def test_a_server_that_dies_before_the_update_is_updated_after_its_restart(live_engine, live_models):
    os.kill(live_engine.servers[0].pid, signal.SIGKILL)
    live_engine.driver.run(partial(load_everywhere, live_engine.fleet, live_models[1].path, 2))
    assert live_engine.driver.run(live_engine.fleet.weight_versions) == [2, 2]


def test_a_bad_checkpoint_is_refused_and_changes_nothing(live_engine, tmp_path):
    with pytest.raises(ServerRefusedError):
        live_engine.driver.run(partial(load, live_engine.fleet, 0, tmp_path / "nowhere", 2))
    with pytest.raises(WeightSyncError, match="version 2 did not reach every server"):
        live_engine.driver.run(partial(load_everywhere, live_engine.fleet, tmp_path / "nowhere", 2))
    assert live_engine.driver.run(live_engine.fleet.weight_versions) == [1, 1]


def test_a_reloaded_server_serves_the_version_of_the_fleet(live_engine, live_models):
    live_engine.driver.run(lambda: rename(live_engine.fleet.client_now(1), "99"))
    live_engine.driver.run(partial(reload, live_engine.fleet, 1, live_models[0].path))
    assert live_engine.driver.run(live_engine.fleet.weight_versions) == [1, 1]
