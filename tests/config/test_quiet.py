"""The switch of --quiet silences progress, not warnings."""

import io

import pytest
from rich.console import Console

from megatron_prime.config.quiet import QUIET, is_quiet
from megatron_prime.observability.progress import Progress


@pytest.mark.parametrize(("value", "quiet"), [(None, False), ("", False), ("0", False), ("1", True)])
def test_progress_is_silent_and_warnings_are_not(value, quiet, monkeypatch):
    monkeypatch.delenv(QUIET, raising=False)
    if value is not None:
        monkeypatch.setenv(QUIET, value)
    assert is_quiet() is quiet
    output = io.StringIO()
    progress = Progress(console=Console(file=output))
    progress.line("step 1")
    progress.warn("truncated")
    assert output.getvalue() == ("" if quiet else "step 1\n") + "WARNING: truncated\n"
