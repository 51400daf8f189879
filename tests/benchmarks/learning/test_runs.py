"""A run of the benchmark is a run of the product, and its record has a curve and its costs."""

import re

import pytest

from benchmarks.learning import records
from benchmarks.learning.methods import METHODS
from benchmarks.learning.runs import BASE, Job, command, shared, train
from benchmarks.learning.tasks import TASKS, ChainTask
from megatron_prime.config.loading import load_config


class _Small(ChainTask):
    def overrides(self):
        sizes = ("trainer.prompts_per_step=2", "sft.num_steps=1", "sft.batch_size=2", "sft.lr_warmup_steps=0")
        return [*super().overrides(), *sizes]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("task", TASKS)
def test_the_settings_of_every_method_are_valid_on_every_task(task, method, tmp_path):
    overrides = [*shared(task, 1, tmp_path), *Job(task, method, 1).overrides]
    load_config(BASE, [re.sub("{.*}", str(tmp_path), each) if "path" in each else each for each in overrides])


def test_a_tried_setting_replaces_that_of_the_method():
    job = Job("marks", "hindsight", 1, ("policy.lr=1e-5", "filter.enabled=true"))
    assert [each for each in job.overrides if each.startswith(("policy.lr", "filter"))] == [
        "filter.enabled=true",
        "policy.lr=1e-5",
    ]
    assert len(job.overrides) == len({each.split("=")[0] for each in job.overrides})


def test_the_setting_of_a_task_replaces_that_of_the_method_and_is_replaced_by_a_tried_one():
    assert "policy.lr=6e-4" in Job("marks", "rloo", 1).overrides
    assert "policy.lr=2e-4" in Job("modulo29", "rloo", 1).overrides
    assert "policy.lr=1e-4" in Job("modulo29", "rloo", 1, ("policy.lr=1e-4",)).overrides


@pytest.mark.slow
def test_a_run_leaves_a_record_and_is_not_repeated(tmp_path, monkeypatch):
    monkeypatch.setitem(TASKS, "marks", _Small("test", num_steps=3))
    monkeypatch.setattr("benchmarks.learning.tasks.NUM_DEMONSTRATIONS", 4)
    monkeypatch.setattr("benchmarks.learning.tasks.NUM_PROBLEMS", 8)
    job = Job("marks", "hindsight", 1, ("trainer.num_steps=2",))
    folder = job.folder(tmp_path)
    folder.mkdir(parents=True)
    usage = train(job, tmp_path)
    assert usage.exit_code == 0, (folder / "output.log").read_text()
    record = records.record_of(job, folder, usage)
    assert record.rollouts == [8, 16] and len(record.auc) == len(record.accuracy) == 2
    assert 0 < record.seconds[0] < record.seconds[1] and 0 < record.flops[0] < record.flops[1]
    assert 0 < record.cpu_seconds[0] <= record.cpu_seconds[1] <= usage.cpu_seconds
    records.append(record, tmp_path / "results")
    (again,) = records.read(tmp_path / "results")
    assert again == record and records.is_done(job, [again])
    assert not records.is_done(Job("marks", "hindsight", 2, job.tried), [again])


def test_the_exit_code_of_a_command_is_its_own(tmp_path):
    assert command(["train", str(tmp_path / "missing.toml")], tmp_path / "log").exit_code == 2
