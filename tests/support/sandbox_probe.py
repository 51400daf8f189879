"""Whether this machine can run the sandbox, and the mark of tests that need it."""

import shutil
import subprocess

import pytest


def why_not() -> str:
    """ "" where bubblewrap works."""
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        return "bubblewrap is not installed (apt-get install bubblewrap)"
    command = [bwrap, "--unshare-pid", "--unshare-net", "--ro-bind", "/", "/", "true"]
    probe = subprocess.run(command, capture_output=True, text=True, check=False)
    return f"bubblewrap does not work here: {probe.stderr.strip()}" if probe.returncode else ""


REASON = why_not()
needs_sandbox = pytest.mark.skipif(bool(REASON), reason=REASON)
