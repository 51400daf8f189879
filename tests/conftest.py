"""Settings for all tests: no hub look-ups, one thread per process, and deadlines scaled for this machine."""

import gc
import os
from collections.abc import Generator

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
pytest_plugins = [
    "tests.support.forked_commands",
    "tests.support.live_servers",
    "tests.support.toy_runs",
    "tests.support.side_by_side",
    "tests.support.four_processes",
    "tests.support.minimal_config",
]


@pytest.hookimpl(tryfirst=True)  # before pytest-timeout reads it
def pytest_configure(config: pytest.Config) -> None:
    """Scale the deadline of a whole test (pytest-timeout) like those within tests."""
    from tests.support.deadlines import seconds

    if config.option.timeout is None:
        config.option.timeout = seconds(float(config.getini("timeout")))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Switch garbage collection off while tests are collected: it would search millions of objects, which all stay."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()
