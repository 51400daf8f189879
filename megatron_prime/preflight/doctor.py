"""`megatron-prime doctor`: examine the machine for everything that a run needs, and say how to fix what is missing.

Without a launcher it examines this machine. Under torchrun or srun every rank examines its own node, and the ranks test
the network between them.
"""

import fcntl
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal

import torch

from megatron_prime.config.loading import ConfigError
from megatron_prime.config.redaction import redact
from megatron_prime.config.run import PrimeConfig
from megatron_prime.observability.provenance import versions
from megatron_prime.parallel.connectivity import meet
from megatron_prime.parallel.platform import (
    nccl_version,
    num_gpus,
    select_platform,
    transformer_engine_fault,
)
from megatron_prime.preflight.checks import check_run, command_of
from megatron_prime.preflight.plausibility import doubts

MIN_FREE_GIB = 20.0
"""Free disk space below which a warning is given."""
MIN_SHM_GIB = 1.0
"""Free shared memory below which a warning is given; NCCL and the IPC weight transport use it."""
REQUIRED_PACKAGES = ("torch", "megatron-core", "transformers", "safetensors", "pydantic", "numpy")


@dataclass(frozen=True)
class Finding:
    """The result of one examination."""

    state: Literal["ok", "warning", "fault"]
    subject: str
    text: str
    fix: str = ""
    """Advice to the user; empty when nothing needs to be done."""

    def line(self) -> str:
        """Return the finding as one line, or as two with the fix."""
        return redact(f"{self.state:<8}{self.subject:<12}{self.text}") + (
            f"\n{'':20}-> {redact(self.fix)}" if self.fix else ""
        )


def doctor(config: PrimeConfig | None, timeout_s: float) -> int:
    """Print the findings on this rank. Return the exit code: 1 if one of them is a fault, else 0.

    Args:
        config: The run to examine the machine for; None examines what every run needs.
        timeout_s: Deadline for the ranks to connect, in seconds.
    """
    faults = 0
    is_rank = "RANK" in os.environ and "WORLD_SIZE" in os.environ
    prefix = f"[rank {os.environ['RANK']} {socket.gethostname()}] " if is_rank else ""
    # The files of a run are the same for all ranks of a node.
    run = examine_run(config) if config is not None and os.environ.get("LOCAL_RANK", "0") == "0" else ()
    for finding in chain(examine(config, timeout_s), run):
        faults += finding.state == "fault"
        # Under a launcher, only rank 0 prints what is in order: thousands of ranks would print the same.
        if finding.state != "ok" or os.environ.get("RANK", "0") == "0":
            print(f"{prefix}{finding.line()}", flush=True)  # noqa: T201
    if faults or not is_rank or os.environ["RANK"] == "0":
        summary = f"{faults} fault{'s' if faults != 1 else ''}" if faults else "nothing to fix"
        print(f"{prefix}{summary}", flush=True)  # noqa: T201
    return 1 if faults else 0


def examine(config: PrimeConfig | None, timeout_s: float) -> Iterator[Finding]:
    """Yield a finding for each examination. Faults are findings; nothing is raised."""
    yield _python()
    yield from _packages()
    yield from _devices(config)
    for folder in _folders(config):
        yield from check_folder(folder)
    yield _shared_memory()
    if config is not None and config.rollout.starts_servers:
        yield from check_engine(config.rollout.sglang.python, timeout_s)
    yield from _ranks(timeout_s)


def examine_run(config: PrimeConfig) -> Iterator[Finding]:
    """Yield a finding for each fault and doubt that `check` has about the run, then about a sample of its data."""
    parallel = config.parallel
    number = int(os.environ.get("WORLD_SIZE", parallel.num_processes or parallel.min_processes))
    command = command_of(config)
    try:
        arithmetic = check_run(config, number, command)
    except ConfigError as error:
        yield from (Finding("fault", "run", fault) for fault in error.faults)
        return
    from megatron_prime.preflight.trial import try_run  # it imports transformers

    trial = try_run(config, command)
    questions = doubts(config, arithmetic) if command == "train" else ()
    yield from (Finding("warning", "run", text) for text in [*questions, *trial.warnings])
    yield from (Finding("fault", "run", fault) for fault in trial.faults)
    if not trial.faults:
        yield Finding(
            "ok", "run", "the configuration is sound" + ("" if command == "train" else f" for {command}")
        )


def _python() -> Finding:
    text = f"Python {sys.version.split()[0]} at {sys.executable}"
    return Finding("ok", "python", text)


def _packages() -> Iterator[Finding]:
    found = versions()
    missing = [name for name in REQUIRED_PACKAGES if name not in found]
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
        yield check_compiler()
    cores = len(os.sched_getaffinity(0))
    yield Finding("ok", "devices", f"{count} GPUs, {cores} CPU cores, torch {torch.__version__}")


def check_compiler() -> Finding:
    """Return whether Triton and torch.compile can build the launchers of their kernels at run time."""
    compiler = next(filter(None, map(shutil.which, [os.environ.get("CC", "cc"), "gcc", "clang"])), None)
    header = Path(sysconfig.get_path("include"), "Python.h")
    missing = [] if compiler else ["a C compiler"]
    if not header.exists():
        missing.append(str(header))
    if not missing:
        return Finding("ok", "compiler", f"{compiler}, Python.h")
    return Finding(
        "fault",
        "compiler",
        f"there is no {' and no '.join(missing)}: Triton's kernels are built at run time",
        "install gcc and Python's headers (python3-dev) on every node with GPUs, or set CC",
    )


def _layers(config: PrimeConfig | None) -> Iterator[Finding]:
    """Yield a finding unless Transformer Engine imports and runs what the configuration asks of it on these GPUs."""
    fault = transformer_engine_fault()
    if fault is not None:
        fix = "plain torch layers are used: slower, no FP8"
        yield Finding("warning", "devices", f"no Transformer Engine: {fault}", fix)
    if config is None:
        return
    from megatron_prime.models.te_layers import check_acceleration  # Megatron takes seconds to import

    settings = config.platform
    try:
        check_acceleration(
            config.model_options, select_platform("cuda", settings.dtype, layers=settings.layers)
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
    """Yield findings on free space, atomic renames and locks, on which checkpoints and the lock of run_dir rely."""
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
            "choose another run_dir, or change its permissions",
        )
        return
    state = "ok" if free >= MIN_FREE_GIB else "warning"
    fix = (
        ""
        if state == "ok"
        else "a checkpoint of a large model needs more; checkpoint.keep_last limits how many"
    )
    yield Finding(state, "files", f"{folder}: {free:.0f} GiB free", fix)


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
    fix = "only the lease then keeps two jobs out of one run_dir: mount the file system with locks if you can"
    try:
        with (folder / "lock").open("w") as first, (folder / "lock").open("w") as second:
            fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
            try:
                fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return Finding("ok", "files", "locks work")
    except OSError as error:
        return Finding("warning", "files", f"no locks: {error.strerror}", fix)
    return Finding("warning", "files", "a second process can take a lock that is held", fix)


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
    if free < MIN_SHM_GIB:
        return Finding(
            "warning",
            "memory",
            f"/dev/shm has {free:.1f} GiB",
            "a container needs a larger --shm-size",
        )
    return Finding("ok", "memory", f"/dev/shm has {free:.0f} GiB")


def check_engine(python: Path, timeout_s: float) -> Iterator[Finding]:
    """Yield whether the engine environment imports SGLang, in its own interpreter, and whether its NCCL is ours."""
    fix = "build it by `make sglang`, or name another by rollout.sglang.python"
    if not python.exists():
        yield Finding("fault", "sglang", f"{python} does not exist", fix)
        return
    code = (
        "import importlib.metadata as m, torch, sglang; "
        "nccl = torch.cuda.nccl.version() if torch.distributed.is_nccl_available() else (0,); "
        "print(m.version('sglang'), torch.__version__, '.'.join(map(str, nccl)))"
    )
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
        yield Finding("fault", "sglang", f"{python}: {type(error).__name__}", fix)
        return
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        yield Finding("fault", "sglang", f"{python} cannot import sglang: {reason}", fix)
        return
    sglang, engine_torch, nccl = done.stdout.split()[-3:]
    yield Finding("ok", "sglang", f"SGLang {sglang} on torch {engine_torch}")
    own_nccl = nccl_version()
    if nccl != "0" and own_nccl is not None and nccl != own_nccl:
        # It is no fault, because weights reach servers on the trainer's own GPUs without NCCL.
        yield Finding(
            "warning",
            "sglang",
            f"NCCL {own_nccl} in this environment does not connect to NCCL {nccl} in the engine's",
            "rollout.sglang.weight_transport = 'shards' needs one version in both: see docs/gpu.md",
        )


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
                "check firewalls and host names; GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME select the network",
            )
            return
        hosts = {host: reached.hosts.count(host) for host in reached.hosts}
        spread = ", ".join(f"{count} on {host}" for host, count in hosts.items())
        yield Finding("ok", "ranks", f"{backend}: {spread}; {reached.mb_s:,.0f} MB/s all-reduced")
