"""The log-prob and entropy kernels beside other ways, as time over a floor that is measured in the same run.

    python -m benchmarks.logprob_kernel [--json FILE]       # on a GPU: 4,096 tokens, vocabulary 151,936, bf16
    python -m benchmarks.logprob_kernel --device cpu        # small sizes, plain torch only

1. A tile of logits, given: the part of the work that goes over every logit. The floor is the bytes that must move (the
   tile read once forward; read, and its gradient written, backward) over the bandwidth of a copy. Tiles take turns over
   more memory than a cache holds.
2. A whole output layer, hidden states and weight given. The floor is that of its logits and the time of the matrix
   products that no way can leave out (one forward, two more backward).

Ways that lack something here are listed with what it is; nothing is estimated.
"""

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import torch
import torch.distributed as dist

from benchmarks.live_bytes import LiveBytes
from benchmarks.logprob_ways import (
    Calls,
    CannotRunError,
    LayerInputs,
    Scores,
    TileInputs,
    layer_ways,
    tile_ways,
)
from megatron_prime.logprobs.output_layer import TILE_ELEMENTS


def _faults_of_triton() -> tuple[type[Exception], ...]:
    try:
        from triton.errors import TritonError
    except ImportError:
        return ()
    return (TritonError,)


DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
BYTES_IN_TURN = {"cuda": 2**29, "cpu": 2**22}
"""Tiles that take turns: ten times an H100's cache."""
FAULTS = (RuntimeError, TypeError, ValueError, AttributeError, ImportError, *_faults_of_triton())
"""Memory runs out, or a library is of another release: the way is listed with it, and the others are measured."""
COPIED_BYTES = {"cuda": 2**30, "cpu": 2**26}


@dataclass(frozen=True)
class Sizes:
    """What is scored."""

    num_tokens: int
    vocab_size: int
    hidden_size: int
    tile_tokens: int = 1024

    @staticmethod
    def default(device: str) -> "Sizes":
        """Of a 7B model on a GPU; what a CPU does in seconds elsewhere."""
        return Sizes(4096, 151_936, 4096) if device == "cuda" else Sizes(256, 8192, 64, 64)


@dataclass(frozen=True)
class Row:
    """One way and what it took."""

    level: str
    """tile or layer."""
    way: str
    step: str
    """forward, backward, or forward + backward."""
    seconds: float | None
    """Median; None where it could not run."""
    floor_seconds: float
    peak_bytes: int | None = None
    """Of a layer's forward + backward, beyond its inputs: the gradients are in it."""
    error: float | None = None
    """Largest error of a log-prob against float64 (of their mean, for a way that returns only a sum), nats; a layer's
    holds the rounding of bf16 logits."""
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """Time over the floor: 1 is as fast as memory and products allow."""
        return None if self.seconds is None else self.seconds / self.floor_seconds


def measure(
    device: str = "cuda", dtype: str = "bf16", sizes: Sizes | None = None, repeats: int = 20, seed: int = 0
) -> list[Row]:
    """Time every way on this machine, in this process.

    Args:
        device: cuda or cpu; on a CPU the Triton kernels and the libraries of others are listed as not run.
        dtype: bf16 or fp32, of hidden states, weight and logits.
        sizes: default `Sizes.default(device)`.
        repeats: of each timing; its median is taken.
        seed: of the inputs.

    Returns:
        Rows of every way and step, ours first at each level. Raises ValueError in a process group of several ranks.
    """
    sizes = sizes or Sizes.default(device)
    with _process_group(device):
        clock = Clock(device, repeats)
        bandwidth = copy_bandwidth(clock, device)
        rows = list(_measure_tiles(clock, bandwidth, device, DTYPES[dtype], sizes, seed))
        return rows + list(_measure_layers(clock, bandwidth, device, DTYPES[dtype], sizes, seed))


class Clock:
    """Seconds of a call, and the most memory it holds.

    Args:
        device: cuda or cpu.
        repeats: calls timed.
    """

    def __init__(self, device: str, repeats: int) -> None:
        self.is_cuda = device == "cuda"
        self._repeats = repeats

    def seconds(self, call: Callable[[], object]) -> float:
        """Median of the repeats, after two calls that are not counted."""
        for _ in range(2):
            call()
        if not self.is_cuda:
            return statistics.median(self._wall_times(call))
        torch.cuda.synchronize()
        # The GPU idles until all calls are queued, so that none waits for Python to launch it.
        queueing = sum(self._wall_times(call, 3)) / 3 * self._repeats
        torch.cuda.synchronize()
        events = [torch.cuda.Event(enable_timing=True) for _ in range(self._repeats + 1)]
        torch.cuda._sleep(int(2e9 * min(0.5, queueing)))
        for event in events[:-1]:
            event.record()
            call()
        events[-1].record()
        torch.cuda.synchronize()
        return statistics.median(start.elapsed_time(stop) / 1e3 for start, stop in pairwise(events))

    def _wall_times(self, call: Callable[[], object], repeats: int | None = None) -> Iterator[float]:
        for _ in range(repeats or self._repeats):
            start = time.perf_counter()
            call()
            yield time.perf_counter() - start

    def peak_bytes(self, call: Callable[[], object], known: list[torch.Tensor]) -> int:
        """Most bytes of tensors that a call holds, beyond those there before."""
        if not self.is_cuda:
            with LiveBytes(known=known) as counted:
                call()
            return counted.peak
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before


def copy_bandwidth(clock: Clock, device: str) -> float:
    """Bytes read and written a second by the copy of a large tensor."""
    source = torch.zeros(COPIED_BYTES[device], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * len(source) / clock.seconds(lambda: target.copy_(source))


def _measure_tiles(
    clock: Clock, bandwidth: float, device: str, dtype: torch.dtype, sizes: Sizes, seed: int
) -> Iterator[Row]:
    num_columns = min(sizes.vocab_size, TILE_ELEMENTS[device] // sizes.tile_tokens)
    tile_bytes = sizes.tile_tokens * num_columns * dtype.itemsize
    floors = {
        "forward": tile_bytes / bandwidth,
        "backward": 2 * tile_bytes / bandwidth,
        "forward + backward": 3 * tile_bytes / bandwidth,
    }

    def make() -> TileInputs:
        generator = torch.Generator(device).manual_seed(seed)
        shape = (sizes.tile_tokens, num_columns)
        return TileInputs(
            [
                torch.randn(shape, generator=generator, device=device).mul_(2).to(dtype)
                for _ in range(max(2, BYTES_IN_TURN[device] // tile_bytes))
            ],
            torch.randint(0, num_columns, shape[:1], generator=generator, device=device),
            torch.randn(2, shape[0], generator=generator, device=device),
        )

    inputs = make()
    full_CW = torch.log_softmax(inputs.logits[0].double(), dim=1)
    expected_C = full_CW.gather(1, inputs.labels_C[:, None])[:, 0]
    del full_CW
    for name, _ in tile_ways(inputs):
        # Anew for each: some overwrite the logits that they are given.
        build = dict(tile_ways(make()))[name]
        yield from _time_way("tile", name, build, clock, floors, expected_C, None)


def _measure_layers(
    clock: Clock, bandwidth: float, device: str, dtype: torch.dtype, sizes: Sizes, seed: int
) -> Iterator[Row]:
    generator = torch.Generator(device).manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device=device)

    inputs = LayerInputs(
        random(sizes.num_tokens, sizes.hidden_size).to(dtype),
        (random(sizes.vocab_size, sizes.hidden_size) * 2 * sizes.hidden_size**-0.5).to(dtype),
        torch.randint(0, sizes.vocab_size, (sizes.num_tokens,), generator=generator, device=device),
        random(2, sizes.num_tokens),
    )
    floors = _layer_floors(clock, bandwidth, inputs)
    hidden_RH, weight_VH = inputs.hidden_RH, inputs.weight_VH
    exact_VH = weight_VH.double()
    expected_R = torch.cat(
        [
            torch.log_softmax(hidden_CH.double() @ exact_VH.T, dim=1).gather(1, labels_C[:, None])[:, 0]
            for hidden_CH, labels_C in zip(hidden_RH.split(256), inputs.labels_R.split(256), strict=True)
        ]
    )
    del exact_VH
    known = [hidden_RH, weight_VH, inputs.labels_R, inputs.upstream_2R]
    for name, build in layer_ways(inputs):
        yield from _time_way("layer", name, build, clock, floors, expected_R, known)


def _layer_floors(clock: Clock, bandwidth: float, inputs: LayerInputs) -> dict[str, float]:
    """Seconds of the products that no way can leave out, over whole logits, and of moving the logits."""
    hidden_RH, weight_VH = inputs.hidden_RH, inputs.weight_VH
    logits_RV = hidden_RH @ weight_VH.T
    once = clock.seconds(lambda: torch.mm(hidden_RH, weight_VH.T, out=logits_RV))
    twice = clock.seconds(lambda: (logits_RV @ weight_VH, logits_RV.T @ hidden_RH))
    moved = logits_RV.nbytes / bandwidth
    return {"forward": once + moved, "forward + backward": once + twice + 3 * moved}


def _time_way(
    level: str,
    name: str,
    build: Callable[[], Calls],
    clock: Clock,
    floors: dict[str, float],
    expected_R: torch.Tensor,
    known: list[torch.Tensor] | None,
) -> Iterator[Row]:
    """Rows of one way; one that says why, where it cannot run."""
    steps: dict[str, float] = {}
    peak = error = None
    note = ""
    try:
        calls = build()
        error = _error(calls.forward(), expected_R)
        steps["forward"] = clock.seconds(calls.forward)
        if calls.backward is not None:
            steps["backward"] = clock.seconds(calls.backward)
        steps["forward + backward"] = clock.seconds(calls.both)
        if known is not None:
            peak = clock.peak_bytes(calls.both, known)
    except CannotRunError as fault:
        note = str(fault)
    except FAULTS as fault:
        note = f"{type(fault).__name__}: {str(fault).splitlines()[0] if str(fault) else ''}"
    calls = None
    gc.collect()
    for step, floor in floors.items():
        if step in steps or (note and step == "forward + backward"):
            yield Row(level, name, step, steps.get(step), floor, peak if "+" in step else None, error, note)


def _error(scores: Scores, expected_R: torch.Tensor) -> float:
    logprobs_R = scores[0].double()
    if logprobs_R.dim() == 0:
        return (logprobs_R - expected_R.sum()).abs().item() / len(expected_R)
    return (logprobs_R - expected_R).abs().max().item()


@contextmanager
def _process_group(device: str) -> Iterator[None]:
    started = not dist.is_initialized()
    if started:
        backend = "nccl" if device == "cuda" else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    elif dist.get_world_size() > 1:
        raise ValueError(
            f"the ways are timed in one process, and this is one of {dist.get_world_size()} ranks"
        )
    try:
        yield
    finally:
        if started:
            dist.destroy_process_group()


def table(rows: list[Row]) -> str:
    """The rows as Markdown, a table a level."""
    lines = []
    for level in ("tile", "layer"):
        lines += [
            f"### {level}\n",
            "| way | step | ms | of the floor | peak MiB | error | |",
            "| --- | --- | --- | --- | --- | --- | --- |",
        ]
        for row in rows:
            if row.level != level:
                continue
            time_ms = "" if row.seconds is None else f"{1e3 * row.seconds:.3f}"
            ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
            peak = "" if row.peak_bytes is None else f"{row.peak_bytes / 2**20:,.0f}"
            error = "" if row.error is None else f"{row.error:.1e}"
            lines.append(f"| {row.way} | {row.step} | {time_ms} | {ratio} | {peak} | {error} | {row.note} |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Measure, print the tables, and write them as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--device", choices=["cuda", "cpu"], default="cuda" if torch.cuda.is_available() else "cpu"
    )
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--tokens", type=int, help="of the output layer")
    parser.add_argument("--vocab", type=int)
    parser.add_argument("--hidden", type=int)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--json", type=Path, help="write the rows there too")
    options = parser.parse_args()
    usual = Sizes.default(options.device)
    sizes = Sizes(
        options.tokens or usual.num_tokens,
        options.vocab or usual.vocab_size,
        options.hidden or usual.hidden_size,
        usual.tile_tokens,
    )
    rows = measure(options.device, options.dtype, sizes, options.repeats)
    name = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}, {options.dtype}, {sizes}\n")
    print(table(rows))
    if options.json:
        found = [asdict(row) | {"ratio": row.ratio} for row in rows]
        options.json.write_text(json.dumps({"device": name, "sizes": asdict(sizes), "rows": found}, indent=1))


if __name__ == "__main__":
    main()
