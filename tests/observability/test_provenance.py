"""Compares versions and git state with git and pip; each attempt of a run writes its own file."""

import json
import secrets
import subprocess
from importlib.metadata import version

from megatron_prime.observability.provenance import LAST_END, git_state, provenance, save_provenance, versions


def git(folder, *arguments):
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    done = subprocess.run(["git", "-C", folder, *who, *arguments], check=True, capture_output=True, text=True)
    return done.stdout


def test_git_state_has_commit_and_changes(tmp_path):
    assert git_state(tmp_path) is None
    git(tmp_path, "init", "-q")
    (tmp_path / "code.py").write_text("one = 1\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    clean = git_state(tmp_path)
    assert clean["commit"] == git(tmp_path, "rev-parse", "HEAD").strip()
    assert (clean["changed"], clean["diff"]) == ([], "")
    (tmp_path / "code.py").write_text("one = 2\n")
    (tmp_path / "new.py").touch()
    changed = git_state(tmp_path)
    assert changed["changed"] == [" M code.py", "?? new.py"]
    assert "-one = 1\n+one = 2" in changed["diff"] and changed["diff_is_whole"]


def test_versions_are_the_installed_ones():
    assert versions(["torch", "no-such-package"]) == {"torch": version("torch")}


def test_each_attempt_has_its_file(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv(LAST_END, "ended with exit code 71: out of memory\nrank 3: boom")
    first, second = (save_provenance(tmp_path, attempt) for attempt in (1, 2))
    assert first != second
    found = json.loads(second.read_text())
    assert found["job"]["SLURM_JOB_ID"] == "77"
    assert found["last_end"] == ["ended with exit code 71: out of memory", "rank 3: boom"]
    assert found.keys() == provenance(tmp_path).keys()
    assert found["versions"]["megatron-core"] == version("megatron-core")


def test_addresses_lose_their_secrets(tmp_path, monkeypatch):
    secret = secrets.token_hex(8)  # The provenance has the changes of this file, too.
    url = f"http://user:{secret}@host/verify?token={secret}"
    git(tmp_path, "init", "-q")
    (tmp_path / "run.toml").write_text("[reward]\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    (tmp_path / "run.toml").write_text(f'[reward]\nverifier = "{url}"\n')
    diff = git_state(tmp_path)["diff"]
    assert '+verifier = "http://***@host/verify?***"' in diff and secret not in diff
    monkeypatch.setattr("sys.argv", ["megatron-prime", "train", "run.toml", f"reward.verifier={url}"])
    text = save_provenance(tmp_path, 1).read_text()
    assert "reward.verifier=http://***@host/verify?***" in text and secret not in text
