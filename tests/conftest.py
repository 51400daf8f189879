"""Test settings: no hub look-ups, one thread, and the helpers beside the tests importable."""

import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent / "models")]
pytest_plugins = ["live_servers", "toy_runs", "side_by_side"]
