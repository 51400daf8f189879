"""Settings of every test: no hub look-ups and one thread a process."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
pytest_plugins = [
    "tests.support.live_servers",
    "tests.support.toy_runs",
    "tests.support.side_by_side",
    "tests.support.four_processes",
    "tests.support.minimal_config",
]
