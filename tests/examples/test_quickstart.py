"""The quickstart of a checkout is the command of the package."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_it_is_the_command():
    command = [sys.executable, "-m", "examples.quickstart", "--help"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=120).stdout
    assert shown.startswith("Usage: megatron-prime quickstart [OPTIONS]") and "--fresh" in shown
