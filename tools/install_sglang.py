"""Builds the rollout engine's own Python environment: SGLang pins its torch, so it can't share the training one.

    python tools/install_sglang.py [--venv .venv-sglang]

With an NVIDIA GPU: SGLang with all it asks for. Without one: the CPU build of torch, SGLang without its CUDA
dependencies, and the stand-ins of tools/sglang_cpu_standins. Running it again does nothing until an input changes.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SGLANG = "sglang==0.5.23"
ROOT = Path(__file__).resolve().parents[1]
REQUIREMENTS = ROOT / "requirements-sglang-cpu.txt"
STANDINS = Path(__file__).resolve().parent / "sglang_cpu_standins"
STAMP = ".installed"
PROOF = "import sglang.launch_server, sglang.srt.entrypoints.http_server"
"""What must import for a server to start; takes seconds and needs no model."""


def has_nvidia_gpu() -> bool:
    """Whether the driver lists at least one GPU."""
    if shutil.which("nvidia-smi") is None:
        return False
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, check=False)
    return listed.returncode == 0 and "GPU" in listed.stdout


def fingerprint(gpu: bool) -> str:
    """Changes when an environment built earlier no longer is what this would build."""
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
            # setuptools builds beside the source: not in the working tree.
            copy = shutil.copytree(STANDINS, Path(folder) / STANDINS.name)
            _pip(python, "--no-deps", str(copy))
    environment = os.environ | ({} if gpu else {"SGLANG_USE_CPU_ENGINE": "1"})
    subprocess.run([str(python), "-c", PROOF], check=True, timeout=600, env=environment)


def _pip(python: Path, *arguments: str) -> None:
    subprocess.run(
        [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments],
        check=True,
    )


def main() -> int:
    """Command line; the exit status says whether the environment stands."""
    parser = argparse.ArgumentParser(description="Build the rollout engine's Python environment.")
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv-sglang", help="folder of the environment")
    venv = parser.parse_args().venv.resolve()
    gpu = has_nvidia_gpu()
    stamp, wanted = venv / STAMP, fingerprint(gpu)
    if stamp.is_file() and stamp.read_text() == wanted:
        print(f"{venv} is up to date")
        return 0
    if venv.exists() and not (venv / "pyvenv.cfg").is_file():
        print(
            f"{venv} is there and no virtual environment: choose another --venv, or remove it",
            file=sys.stderr,
        )
        return 1
    print(f"building {venv} with {SGLANG} for {'NVIDIA GPUs' if gpu else 'the CPU'}: a few minutes, 3 GB")
    try:
        install(venv, gpu)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        print(f"{error}\nThe environment is incomplete; mend the cause and run this again.", file=sys.stderr)
        return 1
    stamp.write_text(wanted)
    print(f"done: {venv / 'bin' / 'python'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
