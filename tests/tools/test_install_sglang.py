"""The engine environment is built once and rebuilt when an input changes, and never replaces anything else."""

import subprocess
import sys
from pathlib import Path

import pytest

from tools import install_sglang

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(monkeypatch, capsys):
    """Call main() with an install that only counts; return (exit code, output, number of installs)."""
    installs = []

    def install(venv, gpu):
        installs.append(gpu)
        (venv / "bin").mkdir(parents=True, exist_ok=True)
        (venv / "pyvenv.cfg").touch()
        (venv / "bin" / "python").touch()

    def run_main(venv, install=install, gpu=False, cache=None):
        monkeypatch.setattr(install_sglang, "install", install)
        monkeypatch.setattr(install_sglang, "has_nvidia_gpu", lambda: gpu)
        arguments = ["--venv", str(venv), *(["--cache", str(cache)] if cache else [])]
        monkeypatch.setattr(sys, "argv", ["install_sglang.py", *arguments])
        status = install_sglang.main()
        captured = capsys.readouterr()
        return status, captured.out + captured.err, len(installs)

    return run_main


def test_a_second_run_does_nothing_until_the_machine_changes(run, tmp_path):
    venv = tmp_path / "venv"
    assert run(venv)[::2] == (0, 1)
    status, output, num_installs = run(venv)
    assert (status, num_installs) == (0, 1) and "up to date" in output
    assert run(venv, gpu=True)[::2] == (0, 2)


def test_a_changed_input_builds_again(run, tmp_path, monkeypatch):
    venv = tmp_path / "venv"
    run(venv)
    changed = tmp_path / "requirements.txt"
    changed.write_text("torch==0")
    monkeypatch.setattr(install_sglang, "REQUIREMENTS", changed)
    assert run(venv)[2] == 2


def test_a_failed_build_is_repeated(run, tmp_path):
    def fails(venv, gpu):
        raise subprocess.CalledProcessError(1, "pip")

    status, output, _ = run(tmp_path / "venv", fails)
    assert status == 1 and "incomplete" in output
    assert run(tmp_path / "venv")[2] == 1


def test_a_folder_that_is_no_environment_is_left_alone(run, tmp_path):
    (tmp_path / "thesis.txt").touch()
    status, output, num_installs = run(tmp_path)
    assert (status, num_installs) == (1, 0) and "not a virtual environment" in output


def test_an_environment_whose_python_is_gone_is_built_again(run, tmp_path):
    run(tmp_path / "venv")
    (tmp_path / "venv" / "bin" / "python").unlink()
    assert run(tmp_path / "venv")[::2] == (0, 2)


def test_a_cache_serves_every_checkout_and_keeps_environments_in_use(run, tmp_path, monkeypatch):
    cache, first, second = tmp_path / "cache", tmp_path / "first", tmp_path / "second"
    assert [run(venv, cache=cache)[::2] for venv in (first, second)] == [(0, 1), (0, 1)]
    assert first.is_symlink() and first.resolve() == second.resolve()
    old = first.resolve()
    changed = tmp_path / "requirements.txt"
    changed.write_text("torch==0")
    monkeypatch.setattr(install_sglang, "REQUIREMENTS", changed)
    assert run(first, cache=cache)[::2] == (0, 2)
    assert first.resolve() != old == second.resolve()
    # Without the cache the link is replaced by a folder; the target of the link stays intact.
    assert run(second)[::2] == (0, 3)
    assert not second.is_symlink() and (old / "pyvenv.cfg").is_file()


def test_a_cache_replaces_only_an_outdated_environment(run, tmp_path):
    run(tmp_path / "venv")
    assert run(tmp_path / "venv", cache=tmp_path / "cache")[::2] == (0, 1)
    assert not (tmp_path / "cache").exists()
    (tmp_path / "venv" / install_sglang.STAMP).write_text("older")
    assert run(tmp_path / "venv", cache=tmp_path / "cache")[::2] == (0, 2)
    assert (tmp_path / "venv").is_symlink()
    (tmp_path / "thesis").mkdir()
    assert run(tmp_path / "thesis", cache=tmp_path / "cache")[0] == 1


def test_a_failed_build_in_the_cache_makes_no_link(run, tmp_path):
    def fails(venv, gpu):
        raise subprocess.CalledProcessError(1, "pip")

    assert run(tmp_path / "venv", fails, cache=tmp_path / "cache")[0] == 1
    assert not (tmp_path / "venv").exists()


def test_every_requirement_is_pinned_and_has_no_url():
    lines = [
        line for line in install_sglang.REQUIREMENTS.read_text().splitlines() if not line.startswith("#")
    ]
    assert all(line.count("==") == 1 and "/" not in line and "@" not in line for line in lines)
    assert "torch==2.13.0" in lines


def test_the_stand_ins_import_and_refuse_to_compute(tmp_path):
    """Runs in a separate process, because the package has the name of the real kernels."""
    code = (
        "import sgl_kernel\n"
        "from sgl_kernel.anything.deep import kernel\n"
        "import sglang_cpu_standins.torchvision_ops as ops\n"
        "ops.install()\n"
        "sgl_kernel.scalar_type.some_constant\n"
        "try:\n    kernel(1)\nexcept NotImplementedError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=install_sglang.STANDINS, capture_output=True, text=True, check=True
    )
    assert "sgl_kernel.anything.deep.kernel needs a GPU" in done.stdout
