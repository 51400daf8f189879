"""Two processes on one GPU: memory that one maps from the other, and the cost of a process that spins."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from megatron_prime.engines.sglang.loader import staging
from megatron_prime.engines.sglang.weights.shared_buffer import SharedBuffer
from tools.gpu_checks.lines import ROOT, Line, Setting, info, judged, skipped
from tools.gpu_checks.machine import median_seconds, synchronize

MAPPER = """
import json, sys
import torch
from staging import map_staging
memory = map_staging(json.loads(sys.argv[1]))
print(int(memory.sum(dtype=torch.int64)), flush=True)
memory.fill_(7)
if memory.is_cuda:
    torch.cuda.synchronize()
print("written", flush=True)
sys.stdin.read()
"""
SPINNER = """
import time, torch
torch.cuda._sleep(1)
print("spins", flush=True)
while True:
    torch.cuda._sleep(10**9)
    torch.cuda.synchronize()
"""


def sharing(setting: Setting) -> Iterator[Line]:
    """Hand memory to another process, as a weight sync does; then measure kernels beside one that never yields."""
    yield from _mapped(setting)
    if not setting.is_cuda:
        yield skipped("kernels beside a process that spins", "no GPU")
        return
    yield from _beside_a_spinner(setting)


def _mapped(setting: Setting) -> Iterator[Line]:
    num_bytes = 2**20 if setting.is_tiny else 2**28
    buffer = SharedBuffer(num_bytes, torch.device(setting.device))
    buffer.memory.fill_(3)
    synchronize(setting)
    start = time.perf_counter()
    with _child(MAPPER, json.dumps(buffer.handle)) as (child, said):
        yield judged(
            "bytes that another process reads", said, "", f"3 x {num_bytes}", said == str(3 * num_bytes)
        )
        assert child.stdout is not None
        child.stdout.readline()
        written = bool((buffer.memory == 7).all())
        yield judged("bytes that it writes are seen here", float(written), "", "1", written)
    yield info("start of the process and both copies", time.perf_counter() - start, "s")
    buffer.close()


def _beside_a_spinner(setting: Setting) -> Iterator[Line]:
    """Measure what a waiting NCCL kernel, which spins, costs another process: a sampling server, for example."""
    size = 512 if setting.is_tiny else 4096
    matrix = torch.randn(size, size, dtype=torch.bfloat16, device="cuda")
    small = torch.zeros(1024, device="cuda")

    def many_small() -> None:
        for _ in range(200):
            small.add_(1)

    work = {"a product": lambda: matrix @ matrix, "200 small kernels": many_small}
    alone = {name: median_seconds(call, setting) for name, call in work.items()}
    with _child(SPINNER):
        for name, call in work.items():
            seconds = median_seconds(call, setting)
            note = f"{1e3 * alone[name]:.3f} ms alone, {1e3 * seconds:.3f} ms beside it"
            yield info(
                f"{name} beside a process that spins", seconds / alone[name], "of the time alone", note
            )


@contextmanager
def _child(code: str, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run code in another process until the end of the block; yield it and its first line."""
    folders = [str(ROOT), str(Path(staging.__file__).parent)]
    child = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(folders)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    try:
        yield child, child.stdout.readline().strip()
    finally:
        child.kill()
        child.communicate()
