"""The schedule of a command that trains on files stands where the loop looks for it."""

import dataclasses
from types import SimpleNamespace
from typing import Any

from megatron_prime.cli.launch import RESUMABLE
from megatron_prime.cli.offline import OfflineRun
from megatron_prime.config import stages
from megatron_prime.config.run import PrimeConfig


def test_the_loop_gets_the_schedule_of_the_command():
    config = PrimeConfig.model_validate(
        {
            "run_dir": "runs/a",
            "model": {"path": "m"},
            "trainer": {"num_steps": 9},
            "prm_training": {"num_steps": 40, "eval_every": 5},
        }
    )
    parts: Any = SimpleNamespace(shown={}, status={}, evaluated="pair accuracy")
    nothing: Any = None
    run = OfflineRun(config, config.stage("train_prm"), *[nothing] * 4)
    assert (run._loop_config().trainer.num_steps, run._loop_config().trainer.eval_every) == (40, 5)
    assert (run._output(parts).name, run._output(parts).steps_per_line) == ("train-prm", 4)
    short = dataclasses.replace(run, stage=dataclasses.replace(run.stage, num_steps=3))
    assert short._output(parts).steps_per_line == 1


def test_the_command_line_names_the_same_resumable_commands():
    assert tuple(name.replace("-", "_") for name in RESUMABLE) == stages.RESUMABLE
