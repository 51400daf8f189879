import os
import pickle
import subprocess
import sys

import pytest

from megatron_prime.config.tables.reward import CodeConfig
from megatron_prime.rewards.code import sandbox
from megatron_prime.rewards.code.sandbox import Sandbox, SandboxError
from tests.support import deadlines
from tests.support.sandbox_probe import REASON, needs_sandbox

SYSTEM_PYTHON = "/usr/bin/python3"


@pytest.fixture(scope="module", params=["bubblewrap", "none-i-accept-the-risk"])
def box(request):
    if request.param == "bubblewrap" and REASON:
        pytest.skip(REASON)
    return Sandbox(CodeConfig(sandbox=request.param, max_output_mib=1))


def test_input_output_and_exit_code_are_passed(box):
    done = box.run("import sys\nprint(input())\nsys.stderr.write('why')\nexit(3)", b"hello\n", 20.0)
    assert (done.exit_code, done.stdout, done.detail) == (3, b"hello\n", "why")


def test_large_unread_input_does_not_block(box):
    assert box.run("print(1)", b"x" * (1 << 22), 20.0).stdout == b"1\n"
    assert box.run("print(len(input()))", b"x" * (1 << 22), 20.0).stdout == f"{1 << 22}\n".encode()


def test_time_and_output_are_limited(box):
    assert box.run("while True: pass", b"", 0.5).exit_code in (None, -9)
    done = box.run("print('x' * (2 << 20))", b"", 20.0)
    assert (done.exit_code, done.stdout) == (None, b"")
    assert "1 MiB" in done.detail


def test_a_program_with_lone_surrogates_fails(box):
    assert box.run("print('\ud800')", b"", 20.0).stdout == b"?\n"
    assert box.run("\0", b"", 20.0).exit_code == 1


def test_runs_are_repeatable(box):
    outputs = {box.run("print(hash('x'), list({'a', 'b', 'c'}))", b"", 20.0).stdout for _ in range(3)}
    assert len(outputs) == 1


@needs_sandbox
def test_a_sandbox_failure_is_an_error_and_not_a_result(monkeypatch):
    broken = Sandbox(CodeConfig(readable_paths=["/does/not/exist"]))
    with pytest.raises(SandboxError, match="/does/not/exist"):
        broken.run("print(1)", b"", 20.0)
    monkeypatch.setattr(sandbox, "LAUNCHER", "import os; os._exit(0)")
    with pytest.raises(SandboxError, match="exit code 0"):
        Sandbox(CodeConfig()).run("print(1)", b"", 20.0)


def test_a_missing_bubblewrap_is_an_error_unless_accepted(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=r"apt-get install bubblewrap.*none-i-accept-the-risk"):
        Sandbox(CodeConfig())
    assert Sandbox(CodeConfig(sandbox="none-i-accept-the-risk")).run("print(1)", b"", 20.0).stdout == b"1\n"


@needs_sandbox
def test_only_the_configured_folders_can_be_read(tmp_path):
    (tmp_path / "mine.py").write_text("VALUE = 7")
    tmp_path.chmod(0o755)
    code = f"import sys\nsys.path.append({str(tmp_path)!r})\nimport mine\nprint(mine.VALUE)"
    assert Sandbox(CodeConfig(readable_paths=[tmp_path])).run(code, b"", 20.0).stdout == b"7\n"
    assert Sandbox(CodeConfig()).run(code, b"", 20.0).exit_code == 1


@needs_sandbox
def test_a_configured_interpreter_has_its_packages(tmp_path):
    folder = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (site_packages,) = folder.glob("lib/python*/site-packages")
    (site_packages / "mine.py").write_text("VALUE = 7")
    box = Sandbox(CodeConfig(python=folder / "bin" / "python"))
    assert box.run("import mine\nprint(mine.VALUE)", b"", 20.0).stdout == b"7\n"


@needs_sandbox
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.skipif(not os.path.exists(SYSTEM_PYTHON), reason=f"no {SYSTEM_PYTHON}, which every user can run")
def test_an_unprivileged_user_has_the_same_sandbox():
    """Run in a process of another user, where user namespaces replace root."""
    program = (
        "import os, pickle, sys\n"
        "import megatron_prime.rewards\n"
        "from megatron_prime.config.tables.reward import CodeConfig\n"
        "from megatron_prime.rewards.code.sandbox import Sandbox\n"
        "code, stdin = pickle.loads(sys.stdin.buffer.read())\n"
        "import tempfile, selectors, unicodedata\n"
        "os.setgroups([]); os.setgid(54321); os.setuid(54321)\n"
        f"done = Sandbox(CodeConfig(python={SYSTEM_PYTHON!r})).run(code, stdin, 20.0)\n"
        "sys.stdout.buffer.write(pickle.dumps((done.exit_code, done.stdout, done.detail)))\n"
    )
    code = (
        "import os, socket\n"
        "def attempt(action):\n"
        "    try: return action()\n"
        "    except Exception as error: return type(error).__name__\n"
        "print(input(), attempt(lambda: open('/x', 'w')), end=' ')\n"
        "print(attempt(socket.socket), attempt(lambda: open('/etc/passwd')))\n"
        "children = 0\n"
        "try:\n"
        "    while children < 100:\n"
        "        if os.fork() == 0:\n"
        "            import time; time.sleep(60)\n"
        "        children += 1\n"
        "except OSError: pass\n"
        "print(children < 100, flush=True)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=pickle.dumps((code, b"hello\n")),
        capture_output=True,
        timeout=deadlines.seconds(60),
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    exit_code, stdout, detail = pickle.loads(done.stdout)
    assert (exit_code, stdout) == (0, b"hello OSError PermissionError FileNotFoundError\nTrue\n"), detail
