import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_prime.config.loading import load_config
from megatron_prime.observability.rollout_log import RolloutFile, write_rollouts
from megatron_prime.preflight.replay import replay_doubts, replay_faults
from tests.support.toy_runs import Toy

REFUSED_REPLAYS = {
    "absent": ([], "no rollout log is there"),
    "single": (["trainer.num_steps=6"], "2 of the steps 1 to 6 are not logged, first step 5"),
    "cut": ([], r"step-00000001\.parquet is damaged or not Parquet"),
    "single/rollouts": (
        ["rollout.group_size=2"],
        r"holds \d+ responses in \d+ groups, but rollout\.group_size = 2: set it",
    ),
    "other": ([], "was sampled with another tokenizer"),
    "shape": ([], r"was sampled with another architecture \(config\.json\)"),
    "nucleus": ([], r"was sampled with rollout\.top_p = 0\.9, but its log-probs are those of the whole"),
    "part": (
        [],
        "holds 2 of the 99 groups that the step has sampled, fewer than trainer.prompts_per_step = 8",
    ),
}


@pytest.mark.parametrize("source", REFUSED_REPLAYS)
def test_a_log_that_cannot_be_replayed_is_refused_by_check(toy: Toy, tmp_path, monkeypatch, source):
    monkeypatch.chdir(toy.folder)
    overrides, message = REFUSED_REPLAYS[source]
    path = Path(source)
    if source in ("cut", "other", "shape", "nucleus", "part"):
        path = tmp_path / "log"
        shutil.copytree("single/rollouts", path)
        first = path / "step-00000001.parquet"
        if source == "cut":
            first.write_bytes(first.read_bytes()[:-9])
        else:
            with RolloutFile(first) as file:
                rows, info = list(file.rows()), file.info
            info = replace(info, model={"tokenizer": "x"}) if source == "other" else info
            if source == "shape":
                info = replace(info, model={**info.model, "config.json": "x"})
            if source == "nucleus":
                info = replace(info, top_p=0.9)
            if source == "part":
                rows, info = rows[:8], replace(info, num_groups=2, num_groups_sampled=99)
            write_rollouts(first, info, rows)
    config = load_config(Path("run.toml"), [f"run_dir={tmp_path / 'run'}", *overrides])
    faults = list(replay_faults(config, path))
    assert re.search(message, faults[0]), faults


@pytest.mark.parametrize("differs", [False, True])
def test_a_log_of_other_weights_is_replayed_with_a_warning(toy: Toy, tmp_path, monkeypatch, differs):
    monkeypatch.chdir(toy.folder)
    config = load_config(Path("run.toml"), [f"run_dir={tmp_path / 'run'}"])
    with RolloutFile(Path("single/rollouts/step-00000001.parquet")) as file:
        rows, info = list(file.rows()), file.info
    info = replace(info, model=info.model | ({"weights": "x"} if differs else {}))
    write_rollouts(tmp_path / "step-00000001.parquet", info, rows)
    warnings = list(replay_doubts(config, tmp_path))
    assert ["sampled from other weights" in warning for warning in warnings] == [True] * differs
