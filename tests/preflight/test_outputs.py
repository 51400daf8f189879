"""Folders that cannot be written, or that hold results already."""

from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from megatron_prime.config import load_config
from megatron_prime.config.loading import ConfigError
from tests.preflight.workspace import check, faults_of


def test_a_run_dir_below_a_file_is_refused(workspace):
    assert faults_of("run_dir=train.jsonl/x")[0].endswith("train.jsonl is not a folder")


def test_a_run_dir_that_may_not_be_written_is_refused(workspace, monkeypatch):
    # Root may write anywhere, so the system's answer is replaced rather than provoked.
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert faults_of()[0].endswith("is not writable")


def test_an_sft_output_that_exists_is_refused_and_nothing_else_minds_it(workspace):
    data = "sft.data=['train.jsonl']"
    assert faults_of(data, "sft.output=model", command="sft") == (
        "model exists already: remove it, or set sft.output to another folder",
    )
    (workspace / "runs/a/sft").mkdir(parents=True)
    assert load_config(Path("run.toml")).stage("sft").output == Path("runs/a/sft")
    assert faults_of(data, command="sft")[0].startswith("runs/a/sft exists already")
    check("sft.output=model")


@pytest.mark.parametrize(
    ("command", "option", "named"),
    [
        ("sft", "sft.output", "sft.data=['train.jsonl']"),
        ("train_prm", "prm_training.output", "prm_training.responses=['train.jsonl']"),
    ],
)
def test_an_output_that_cannot_be_written_is_refused_before_the_training(workspace, command, option, named):
    (fault,) = faults_of(named, f"{option}=train.jsonl/x", command=command)
    assert fault.startswith(f"{option} = train.jsonl/x: ") and fault.endswith("train.jsonl is not a folder")
    check(named, f"{option}=new/folder", command=command)


def test_a_logger_whose_package_is_missing_is_refused(workspace, monkeypatch):
    check("logging.backends=['tensorboard', 'wandb', 'mlflow']")

    def version(package: str) -> str:
        raise PackageNotFoundError(package)

    monkeypatch.setattr("megatron_prime.preflight.loggers.version", version)
    (fault,) = faults_of("logging.backends=['wandb']")
    assert fault.endswith("pip install 'megatron-prime[wandb]', or leave the backend out")
    assert faults_of("logging.backends=['wandb']", "sft.data=['train.jsonl']", command="sft") == (fault,)


def test_an_unknown_logger_is_refused(workspace):
    with pytest.raises(ConfigError, match="tensorboard"):
        check("logging.backends=['tensorbord']")
