"""Fixtures of the checks."""

from pathlib import Path

import pytest

from tests.preflight.workspace import write_model


@pytest.fixture
def workspace(tmp_path, minimal_toml, monkeypatch) -> Path:
    """A folder in which the minimal file's run can start."""
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "model")
    (tmp_path / "train.jsonl").write_text('{"prompt": "1+1", "answer": "2"}\n')
    minimal_toml.write_text(minimal_toml.read_text() + '[data]\ntrain = ["train.jsonl"]\n')
    return tmp_path
