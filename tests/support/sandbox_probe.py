"""A probe for a working sandbox on this machine, and the pytest mark of tests that need it."""

import shutil
import subprocess

import pytest


def why_not() -> str:
    """Return why bubblewrap does not work on this machine, or "" if it works."""
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        return "bubblewrap is not installed (apt-get install bubblewrap)"
    command = [bwrap, "--unshare-pid", "--unshare-net", "--ro-bind", "/", "/", "true"]
    probe = subprocess.run(command, capture_output=True, text=True, check=False)
    return f"bubblewrap does not work here: {probe.stderr.strip()}" if probe.returncode else ""


REASON = why_not()
needs_sandbox = pytest.mark.skipif(bool(REASON), reason=REASON)
