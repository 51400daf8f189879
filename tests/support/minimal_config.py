"""A fixture with the smallest valid configuration."""

from pathlib import Path

import pytest

MINIMAL = """
run_dir = "runs/a"
[model]
path = "model"
[trainer]
num_steps = 3
prompts_per_step = 4
"""


@pytest.fixture
def minimal_toml(tmp_path: Path) -> Path:
    """Return a file with every required key, and the batch size that the tests assume."""
    path = tmp_path / "run.toml"
    path.write_text(MINIMAL, encoding="utf-8")
    return path
