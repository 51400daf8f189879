"""Build the Python environment of the SGLang servers, which is separate because SGLang pins its own torch.

    python -m tools.install_sglang [--venv .venv-sglang] [--cache FOLDER]

With an NVIDIA GPU it contains SGLang with all its dependencies; without one, the CPU build of torch, SGLang without its
CUDA dependencies, and the stand-ins of tools/sglang_cpu_standins. Running the command again does nothing until an input
changes. With --cache, the environment is built in that folder, under a name that depends on its inputs, where other
checkouts find it too, and --venv becomes a link to it.
"""

import argparse
import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

SGLANG = "sglang==0.5.23"
ROOT = Path(__file__).resolve().parents[1]
REQUIREMENTS = ROOT / "tools" / "requirements-sglang-cpu.txt"
STANDINS = Path(__file__).resolve().parent / "sglang_cpu_standins"
STAMP = ".installed"
PROOF = "import sglang.launch_server, sglang.srt.entrypoints.http_server"
"""Code that runs without an error if a server can start; it takes seconds and needs no model."""


def has_nvidia_gpu() -> bool:
    """Return whether the driver lists at least one GPU."""
    if shutil.which("nvidia-smi") is None:
        return False
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, check=False)
    return listed.returncode == 0 and "GPU" in listed.stdout


def fingerprint(gpu: bool) -> str:
    """Return a hash of everything that determines the environment: an environment with another hash is out of date."""
    digest = hashlib.sha256(f"{SGLANG} {gpu} {sys.version_info[:2]}".encode())
    files = [
        REQUIREMENTS,
        *sorted(path for path in STANDINS.rglob("*") if path.suffix in (".py", ".pth", ".toml")),
    ]
    for file in files if not gpu else []:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def install(venv: Path, gpu: bool) -> None:
    """Build the environment in place. Raises CalledProcessError when a step fails."""
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(venv)], check=True)
    python = venv / "bin" / "python"
    if gpu:
        _pip(python, SGLANG)
    else:
        _pip(python, "-r", str(REQUIREMENTS))
        _pip(python, "--no-deps", SGLANG)
        with tempfile.TemporaryDirectory() as folder:
            # setuptools writes build files beside the source, which must not end up in the working tree.
            copy = shutil.copytree(STANDINS, Path(folder) / STANDINS.name)
            _pip(python, "--no-deps", str(copy))
    environment = os.environ | ({} if gpu else {"SGLANG_USE_CPU_ENGINE": "1"})
    subprocess.run([str(python), "-W", "ignore", "-c", PROOF], check=True, timeout=600, env=environment)


def _pip(python: Path, *arguments: str) -> None:
    subprocess.run(
        [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments],
        check=True,
    )


def is_built(venv: Path, wanted: str) -> bool:
    """Return whether the environment is complete and up to date, and the Python that it links to still exists."""
    stamp = venv / STAMP
    return stamp.is_file() and stamp.read_text() == wanted and (venv / "bin" / "python").exists()


def build(venv: Path, gpu: bool) -> int:
    """Bring `venv`, which must not be a link, up to date; return the exit code."""
    wanted = fingerprint(gpu)
    if is_built(venv, wanted):
        print(f"{venv} is up to date")
        return 0
    if venv.exists() and not (venv / "pyvenv.cfg").is_file():
        print(
            f"{venv} exists and is not a virtual environment: remove it, or choose another --venv",
            file=sys.stderr,
        )
        return 1
    print(
        f"building {venv} with {SGLANG} for {'NVIDIA GPUs' if gpu else 'the CPU'}: a few minutes, 3 GB",
        flush=True,
    )
    # An interrupted build must not look complete to the next run.
    (venv / STAMP).unlink(missing_ok=True)
    try:
        install(venv, gpu)
    except (OSError, subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        print(
            f"{error}\nThe environment is incomplete: fix the cause and run this command again.",
            file=sys.stderr,
        )
        return 1
    (venv / STAMP).write_text(wanted)
    print(f"done: {venv / 'bin' / 'python'}")
    return 0


@contextlib.contextmanager
def one_at_a_time(venv: Path) -> Iterator[None]:
    """Wait for other processes that build the same folder. The lock file is left behind: removing it would race."""
    venv.parent.mkdir(parents=True, exist_ok=True)
    with venv.with_name(f".{venv.name.lstrip('.')}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def link(venv: Path, target: Path) -> None:
    """Make `venv` a link to `target`, replacing an existing link or environment."""
    aside = venv.with_name(f".{venv.name.lstrip('.')}.link")
    # Renaming replaces an existing link atomically; only a folder has to be removed first.
    aside.unlink(missing_ok=True)
    aside.symlink_to(target)
    if venv.is_dir() and not venv.is_symlink():
        shutil.rmtree(venv)
    aside.replace(venv)


def main() -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(description="Build the Python environment of the SGLang servers.")
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv-sglang", help="folder of the environment")
    parser.add_argument(
        "--cache", type=Path, help="folder outside the checkout to build in; --venv becomes a link"
    )
    options = parser.parse_args()
    # absolute(), not resolve(): the target of a link belongs to a cache that other checkouts may use.
    venv, gpu = options.venv.absolute(), has_nvidia_gpu()
    wanted = fingerprint(gpu)
    is_other = venv.exists() and not (venv / "pyvenv.cfg").is_file()
    if options.cache is not None and not is_other and not is_built(venv, wanted):
        cached = options.cache.absolute() / f"sglang-{wanted[:16]}"
        with one_at_a_time(cached):
            status = build(cached, gpu)
        if status == 0:
            link(venv, cached)
        return status
    if venv.is_symlink() and not is_built(venv, wanted):
        venv.unlink()
    with one_at_a_time(venv):
        return build(venv, gpu)


if __name__ == "__main__":
    sys.exit(main())
