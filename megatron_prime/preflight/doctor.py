"""`megatron-prime doctor`: is everything there that a run needs, and what to mend where it is not.

On one machine as it is; under torchrun or srun every rank looks at its own node, and all of them at each other.
"""

import fcntl
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from megatron_prime.config.run import PrimeConfig
from megatron_prime.observability.provenance import versions
from megatron_prime.parallel.connectivity import meet
from megatron_prime.parallel.platform import num_gpus, select_platform, transformer_engine_fault

FEWEST_GIB_FREE = 20.0
SHM_GIB = 1.0
NEEDED = ("torch", "megatron-core", "transformers", "safetensors", "pydantic", "numpy")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    state: Literal["ok", "warning", "fault"]
    subject: str
    text: str
    mend: str = ""

    def line(self) -> str:
        """In one line, or two with what to do."""
        return f"{self.state:<8}{self.subject:<12}{self.text}" + (
            f"\n{'':20}-> {self.mend}" if self.mend else ""
        )


def doctor(config: PrimeConfig | None, timeout_s: float) -> int:
    """Print what was found on this rank; 1 where something is a fault, else 0."""
    faults = 0
    is_rank = "RANK" in os.environ and "WORLD_SIZE" in os.environ
    prefix = f"[rank {os.environ['RANK']} {socket.gethostname()}] " if is_rank else ""
    for finding in examine(config, timeout_s):
        faults += finding.state == "fault"
        # Under a launcher, what is fine is told by rank 0 alone.
        if finding.state != "ok" or os.environ.get("RANK", "0") == "0":
            print(f"{prefix}{finding.line()}", flush=True)  # noqa: T201
    if faults or not is_rank or os.environ["RANK"] == "0":
        verdict = f"{faults} fault{'s' if faults != 1 else ''}" if faults else "nothing to mend"
        print(f"{prefix}{verdict}", flush=True)  # noqa: T201
    return 1 if faults else 0


def examine(config: PrimeConfig | None, timeout_s: float) -> Iterator[Finding]:
    """Everything, one finding after the other; nothing is raised."""
    yield _python()
    yield from _packages()
    yield from _devices(config)
    for folder in _folders(config):
        yield from check_folder(folder)
    yield _shared_memory()
    if config is not None and config.rollout.engine == "sglang" and not config.rollout.sglang.urls:
        yield check_engine(config.rollout.sglang.python, timeout_s)
    yield from _ranks(timeout_s)


def _python() -> Finding:
    text = f"Python {sys.version.split()[0]} at {sys.executable}"
    return Finding("ok", "python", text)


def _packages() -> Iterator[Finding]:
    found = versions()
    missing = [name for name in NEEDED if name not in found]
    if missing:
        yield Finding(
            "fault",
            "packages",
            f"{', '.join(missing)} not installed",
            "install the package: pip install -e .",
        )
    yield Finding("ok", "packages", ", ".join(f"{name} {text}" for name, text in found.items()))


def _devices(config: PrimeConfig | None) -> Iterator[Finding]:
    asked = config.platform.device if config is not None else "auto"
    count = num_gpus()
    if count == 0 and asked == "cuda":
        yield Finding(
            "fault",
            "devices",
            "platform.device = 'cuda', but torch sees no GPU",
            "is this a GPU node, is CUDA_VISIBLE_DEVICES empty, is torch a build for CUDA?",
        )
        return
    if count:
        yield from _layers(config)
    cores = len(os.sched_getaffinity(0))
    yield Finding("ok", "devices", f"{count} GPUs, {cores} CPU cores, torch {torch.__version__}")


def _layers(config: PrimeConfig | None) -> Iterator[Finding]:
    """Whether Transformer Engine imports, and what the configuration asks of it runs on these GPUs."""
    fault = transformer_engine_fault()
    if fault is not None:
        mend = "plain torch layers are used: slower, no FP8"
        yield Finding("warning", "devices", f"no Transformer Engine: {fault}", mend)
    if config is None:
        return
    from megatron_prime.models.te_layers import check_acceleration  # Megatron takes seconds to import

    settings = config.platform
    try:
        check_acceleration(
            config.acceleration, select_platform("cuda", settings.dtype, layers=settings.layers)
        )
    except ValueError as error:
        yield Finding("fault", "devices", str(error), "change the setting, or the environment")


def _folders(config: PrimeConfig | None) -> list[Path]:
    if config is None:
        return [Path.cwd()]
    return list(dict.fromkeys([_existing(config.run_dir), _existing(config.model.path)]))[:1]


def _existing(folder: Path) -> Path:
    folder = folder.absolute()
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    return folder


def check_folder(folder: Path) -> Iterator[Finding]:
    """Free space, and whether files can be replaced by a rename and locked: what checkpoints and the lease rely on."""
    try:
        free = shutil.disk_usage(folder).free / 2**30
        with tempfile.TemporaryDirectory(prefix=".doctor.", dir=folder) as inside:
            yield _rename(Path(inside))
            yield _lock(Path(inside))
    except OSError as error:
        yield Finding(
            "fault",
            "files",
            f"{folder} cannot be written: {error.strerror}",
            "choose another run_dir, or its rights",
        )
        return
    state = "ok" if free >= FEWEST_GIB_FREE else "warning"
    mend = (
        ""
        if state == "ok"
        else "a checkpoint of a large model needs more; checkpoint.keep_last limits how many"
    )
    yield Finding(state, "files", f"{folder}: {free:.0f} GiB free", mend)


def _rename(folder: Path) -> Finding:
    old, new = folder / "old", folder / "new"
    old.write_text("old")
    new.write_text("new")
    new.replace(old)
    if old.read_text() != "new" or new.exists():
        return Finding(
            "fault", "files", "a rename does not replace a file", "use another file system for run_dir"
        )
    return Finding("ok", "files", "a rename replaces a file at once")


def _lock(folder: Path) -> Finding:
    mend = "two jobs in one run_dir are then told apart by the lease alone: mount with locks if you can"
    try:
        with (folder / "lock").open("w") as first, (folder / "lock").open("w") as second:
            fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
            try:
                fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return Finding("ok", "files", "locks hold")
    except OSError as error:
        return Finding("warning", "files", f"no locks: {error.strerror}", mend)
    return Finding("warning", "files", "a lock does not keep a second one out", mend)


def _shared_memory() -> Finding:
    try:
        free = shutil.disk_usage("/dev/shm").free / 2**30
    except OSError:
        return Finding(
            "warning",
            "memory",
            "no /dev/shm",
            "a container needs --ipc=host or a larger --shm-size",
        )
    if free < SHM_GIB:
        return Finding(
            "warning",
            "memory",
            f"/dev/shm has {free:.1f} GiB",
            "a container needs a larger --shm-size",
        )
    return Finding("ok", "memory", f"/dev/shm has {free:.0f} GiB")


def check_engine(python: Path, timeout_s: float) -> Finding:
    """The engine environment imports SGLang, in its own interpreter."""
    mend = "build it by `make sglang`, or name another by rollout.sglang.python"
    if not python.exists():
        return Finding("fault", "sglang", f"{python} does not exist", mend)
    code = "import importlib.metadata as m, torch, sglang; print(m.version('sglang'), torch.__version__)"
    clean: Callable[[str], bool] = lambda name: name not in ("PYTHONPATH", "PYTHONHOME")  # noqa: E731
    environment = {name: value for name, value in os.environ.items() if clean(name)}
    try:
        done = subprocess.run(
            [str(python.absolute()), "-c", code],
            capture_output=True,
            text=True,
            timeout=max(timeout_s, 60.0),
            env=environment,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding("fault", "sglang", f"{python}: {type(error).__name__}", mend)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return Finding("fault", "sglang", f"{python} cannot import sglang: {reason}", mend)
    sglang, engine_torch = done.stdout.split()[-2:]
    return Finding("ok", "sglang", f"SGLang {sglang} on torch {engine_torch}")


def _ranks(timeout_s: float) -> Iterator[Finding]:
    if not all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")):
        yield Finding(
            "ok", "ranks", "not under a launcher: start this by torchrun or srun to check the nodes together"
        )
        return
    backends = ["gloo"] + (["nccl"] if num_gpus() else [])
    port = int(os.environ["MASTER_PORT"])
    for index, backend in enumerate(backends):
        os.environ["MASTER_PORT"] = str(port + index)
        try:
            reached = meet(timeout_s, backend)
        except ConnectionError as error:
            yield Finding(
                "fault",
                "ranks",
                str(error),
                "look at firewalls and names; GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME choose the network",
            )
            return
        hosts = {host: reached.hosts.count(host) for host in reached.hosts}
        spread = ", ".join(f"{count} on {host}" for host, count in hosts.items())
        yield Finding("ok", "ranks", f"{backend}: {spread}; {reached.mb_s:,.0f} MB/s all-reduced")
