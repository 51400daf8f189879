import pytest

from megatron_prime.observability.loggers.backends import open_loggers
from megatron_prime.observability.loggers.background import BackgroundLogger
from megatron_prime.observability.loggers.protocol import RunInfo, StepRecord
from megatron_prime.observability.loggers.tensorboard import TensorBoardLogger


def test_only_services_run_in_the_background(tmp_path, monkeypatch):
    # No service is started: the first thing that a logger does is to read its own place in the run.
    monkeypatch.setattr(BackgroundLogger, "_work", lambda self: None)
    found = open_loggers(["tensorboard", "wandb", "mlflow"], RunInfo(tmp_path), 0, list, pytest.fail)
    assert [type(each) for each in found] == [TensorBoardLogger, BackgroundLogger, BackgroundLogger]
    found[1].log(StepRecord(0, {}))
    for each in found:
        each.close()
