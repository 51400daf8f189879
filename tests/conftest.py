"""Settings for all tests: no hub look-ups, one thread per process, and deadlines scaled for this machine."""

import gc
import os

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

    # The collection of tests makes millions of objects that stay, among which there is no garbage to look for.
    gc.disable()
    if config.option.timeout is None:
        config.option.timeout = seconds(float(config.getini("timeout")))


def pytest_collection_finish() -> None:
    """Collect garbage again, of what the tests themselves make."""
    gc.freeze()
    gc.enable()
