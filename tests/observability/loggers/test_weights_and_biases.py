"""Real runs of Weights & Biases in offline mode, killed and resumed."""

import math

import numpy as np
import pytest

from megatron_prime.observability.loggers.protocol import Details, RunInfo, Sample, StepRecord
from tests.observability.loggers import wandb_files


@pytest.fixture
def offline(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    # No other test needs the package, whose import takes seconds.
    from megatron_prime.observability.loggers.weights_and_biases import WandbLogger

    return WandbLogger


def logged(make, run_dir, resume_step, steps, value=0.0, is_killed=False):
    """Log an attempt; a killed one does not end its run."""
    info = RunInfo(run_dir, "first", config={"seed": 7, "policy": {"lr": 1e-6}}, provenance={"host": "a"})
    history = [{"step": step, "policy/entropy": 0.5 + step, "prm/ce": None} for step in range(resume_step)]
    logger = make(info, resume_step, lambda: history)
    for step in steps:
        details = (
            Details({"advantage/tokens": np.arange(10.0)}, [Sample("<b>1+1</b>", "2\u202e", 1.0)])
            if step == steps[0]
            else Details()
        )
        logger.log(StepRecord(step, {"policy/entropy": value + step, "prm/ce": math.nan}, details))
    if not is_killed:
        logger.close()
        logger.close()


def files(run_dir):
    return sorted((run_dir / "wandb").glob("offline-run-*/run-*.wandb"))


def test_an_offline_run_that_is_killed_and_resumed_shows_every_step_once(offline, tmp_path):
    logged(offline, tmp_path, 0, range(3))
    (first,) = files(tmp_path)
    found = wandb_files.history(first)
    assert sorted(found) == [0, 1, 2]
    assert found[1] == {
        "policy/entropy": 1.0,
        "_step": 1,
        **{k: v for k, v in found[1].items() if k[0] == "_"},
    }
    assert found[0]["advantage/tokens/_type"] == "histogram"
    assert found[0]["rollout/samples/_type"] == "table-file"
    kinds = {record.WhichOneof("record_type"): record for record in wandb_files.records(first)}
    config = {item.key: item.value_json for item in kinds["run"].run.config.update}
    assert config["seed"] == "7" and "host" in config["provenance"]
    assert (kinds["run"].run.display_name, kinds["run"].run.project) == ("first", "megatron-prime")
    run_id = kinds["run"].run.run_id

    # A stop as planned: the same run goes on, and `wandb sync` joins its parts.
    logged(offline, tmp_path, 3, range(3, 6))
    _, second = files(tmp_path)
    assert sorted(wandb_files.history(second)) == [3, 4, 5]
    assert second.name == first.name == f"run-{run_id}.wandb"

    # A kill after step 5, with a checkpoint after step 3: a new run has the history, and the old files are put away.
    logged(offline, tmp_path, 4, range(4, 6), value=0.25)
    (whole,) = files(tmp_path)
    found = wandb_files.history(whole)
    assert [found[step]["policy/entropy"] for step in sorted(found)] == [0.5, 1.5, 2.5, 3.5, 4.25, 5.25]
    assert whole.name != first.name
    assert len(list((tmp_path / "wandb").glob(f"replaced-offline-run-*-{run_id}"))) == 2
