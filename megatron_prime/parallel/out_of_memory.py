"""Recognition of errors for want of memory, which another start may survive, and their exit code. Imports no torch.

Free memory depends on what else ran on the GPU or node, and on fragmentation. The job script therefore restarts a job
whose ranks exit with EXIT_CODE, but only once: a second such end in a row needs other settings.
"""

import errno
from pathlib import Path
from typing import Literal

EXIT_CODE = 71
"""Exit code of a rank that ran out of memory: EX_OSERR of sysexits.h."""
Memory = Literal["GPU memory", "GPU memory or pinned host memory", "host memory"]
ADVICE: dict[Memory, str] = {
    "GPU memory": "`megatron-prime plan` counts each phase; lower trainer.max_tokens_per_microbatch or "
    "rollout.sglang.mem_fraction, set memory.recompute or memory.offload_*, or split the model over more GPUs",
    "host memory": "`megatron-prime plan` counts a node's; ask for all of it (Slurm: --mem=0), offload less, or use "
    "more nodes",
    "GPU memory or pinned host memory": "`megatron-prime plan` counts both; lower rollout.sglang.mem_fraction, or "
    "offload less",
}
"""Memory that ran out -> how to need less of it."""
GPU_SIGNS = (
    "cuda out of memory",
    "hip out of memory",
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
)
"""Parts of messages about memory of a GPU, in lower case; NCCL's come with another sign."""
EITHER_SIGNS = ("cuda error: out of memory", "cuda failure 'out of memory'", "cuda failure 2 'out of memory'")
"""Parts of messages of CUDA calls that allocate memory of a GPU, or pinned memory of the host."""
HOST_SIGNS = ("can't allocate memory", "cannot allocate memory", "std::bad_alloc", "out of memory")
"""Parts of messages about memory of the host, or about any memory."""
_CGROUP_FILE = Path("/proc/self/cgroup")


def memory_that_ran_out(error: BaseException) -> Memory | None:
    """Return the memory whose want caused an error, or the error that it was raised from; None for other causes.

    Errors of users (ValueError) that talk about memory are no such errors.
    """
    names = {base.__name__ for base in type(error).__mro__}
    if "OutOfMemoryError" in names:
        return "GPU memory"
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return "host memory"
    found = _from_message(str(error).lower()) if isinstance(error, RuntimeError | OSError) else None
    if found is None and error.__cause__ is not None:
        return memory_that_ran_out(error.__cause__)
    return found


def _from_message(text: str) -> Memory | None:
    # Errors of rank 0 reach other ranks by name and message, and those of servers as the end of their log.
    if any(sign in text for sign in (*GPU_SIGNS, "outofmemoryerror")):
        return "GPU memory"
    if any(sign in text for sign in EITHER_SIGNS):
        return "GPU memory or pinned host memory"
    return "host memory" if any(sign in text for sign in HOST_SIGNS) else None


def num_oom_kills() -> int | None:
    """Return how many processes the kernel has killed for want of memory; None where it does not count them.

    It counts those of this process's cgroup, or all of the machine if this one has no cgroup that counts.
    """
    places = dict(line.split(":", 2)[1:] for line in _lines(_CGROUP_FILE))
    files = (
        Path(f"/sys/fs/cgroup{places.get('', '/')}/memory.events.local"),
        Path(f"/sys/fs/cgroup/memory{places.get('memory', '/')}/memory.oom_control"),
        Path("/proc/vmstat"),
    )
    for file in files:
        for line in _lines(file):
            name, _, count = line.partition(" ")
            if name == "oom_kill":
                return int(count)
    return None


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except OSError:  # It exists only in some versions of the kernel's interface.
        return []
