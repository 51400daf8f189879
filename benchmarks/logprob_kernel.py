"""Compare the log-prob and entropy kernels to other methods, relative to a lower bound measured in the same run.

    python -m benchmarks.logprob_kernel [--json FILE]       # on a GPU: 4,096 tokens, vocabulary 151,936, bf16
    python -m benchmarks.logprob_kernel --device cpu        # small sizes, plain torch only

1. A tile of given logits: the part of the work that touches every logit. The lower bound ("floor") is the number of
   bytes that must move (forward: read the tile once; backward: read it and write its gradient) divided by the
   bandwidth of a copy. The calls rotate over more tiles than fit into a cache.
2. A whole output layer, from hidden states and weight. The floor is that of its logits plus the time of the matrix
   products that no method can avoid (one forward, two more backward).

Methods that cannot run on this machine are listed with the reason; nothing is estimated.
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
from benchmarks.logprob_methods import (
    Calls,
    CannotRunError,
    LayerInputs,
    Scores,
    TileInputs,
    layer_methods,
    tile_methods,
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
"""Total size of the tiles that calls rotate over; on a GPU ten times the cache of an H100."""
FAULTS = (RuntimeError, TypeError, ValueError, AttributeError, ImportError, *_faults_of_triton())
"""Errors of a single method (out of memory, another version of a library): it is listed with its error."""
COPIED_BYTES = {"cuda": 2**30, "cpu": 2**26}


@dataclass(frozen=True)
class Sizes:
    """Sizes of the output layer that is scored, and of a tile."""

    num_tokens: int
    vocab_size: int
    hidden_size: int
    tile_tokens: int = 1024

    @staticmethod
    def default(device: str) -> "Sizes":
        """Return the sizes of a 7B model on a GPU, and smaller ones that take seconds on a CPU."""
        return Sizes(4096, 151_936, 4096) if device == "cuda" else Sizes(256, 8192, 64, 64)


@dataclass(frozen=True)
class Row:
    """The result of one method and step."""

    level: str
    """"tile" or "layer"."""
    method: str
    step: str
    """"forward", "backward", or "forward + backward"."""
    seconds: float | None
    """Median time; None if the method could not run."""
    floor_seconds: float
    peak_bytes: int | None = None
    """Peak memory of a layer's forward + backward beyond its inputs, gradients included."""
    error: float | None = None
    """Largest error of a log-prob against float64, in nats (error of the mean for a method that returns only a sum). A
    layer's includes the rounding of logits to bf16."""
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """Time divided by the floor: 1 is as fast as memory and matrix products allow."""
        return None if self.seconds is None else self.seconds / self.floor_seconds


def measure(
    device: str = "cuda", dtype: str = "bf16", sizes: Sizes | None = None, repeats: int = 20, seed: int = 0
) -> list[Row]:
    """Time every method on this machine, in this process.

    Args:
        device: "cuda" or "cpu"; on a CPU the Triton kernels and third-party libraries are listed as not run.
        dtype: "bf16" or "fp32", of hidden states, weight and logits.
        sizes: default `Sizes.default(device)`.
        repeats: number of timings, of which the median is taken.
        seed: seed of the inputs.

    Returns:
        One row per method and step, at each level those of this project first.

    Raises:
        ValueError: this process belongs to a process group of several ranks.
    """
    sizes = sizes or Sizes.default(device)
    with _process_group(device):
        clock = Clock(device, repeats)
        bandwidth = copy_bandwidth(clock, device)
        rows = list(_measure_tiles(clock, bandwidth, device, DTYPES[dtype], sizes, seed))
        return rows + list(_measure_layers(clock, bandwidth, device, DTYPES[dtype], sizes, seed))


class Clock:
    """A measurement of the duration and the peak memory of calls.

    Args:
        device: "cuda" or "cpu".
        repeats: number of calls that are timed.
    """

    def __init__(self, device: str, repeats: int) -> None:
        self.is_cuda = device == "cuda"
        self._repeats = repeats

    def seconds(self, call: Callable[[], object]) -> float:
        """Return the median duration of a call, after two warm-up calls."""
        for _ in range(2):
            call()
        if not self.is_cuda:
            return statistics.median(self._wall_times(call))
        torch.cuda.synchronize()
        # The GPU sleeps until all calls are queued, so that no measured call waits for Python to launch it.
        queueing = sum(self._wall_times(call, 3)) / 3 * self._repeats
        torch.cuda.synchronize()
        events = [torch.cuda.Event(enable_timing=True) for _ in range(self._repeats + 1)]
        # The argument is in clock cycles: about 2e9 per second.
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
        """Return the peak memory of a call beyond what was allocated before; `known` tensors are not counted."""
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
    """Return the bytes per second that the copy of a large tensor reads and writes."""
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
    # Release the large float64 tensor before the methods run.
    del full_CW
    for name, _ in tile_methods(inputs):
        # Each method gets new inputs, because some overwrite the logits.
        build = dict(tile_methods(make()))[name]
        yield from _time_method("tile", name, build, clock, floors, expected_C, None)


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
    # Release the float64 weight before the methods run.
    del exact_VH
    known = [hidden_RH, weight_VH, inputs.labels_R, inputs.upstream_2R]
    for name, build in layer_methods(inputs):
        yield from _time_method("layer", name, build, clock, floors, expected_R, known)


def _layer_floors(clock: Clock, bandwidth: float, inputs: LayerInputs) -> dict[str, float]:
    """Return the time of the matrix products that no method can avoid, plus the time to move the logits."""
    hidden_RH, weight_VH = inputs.hidden_RH, inputs.weight_VH
    logits_RV = hidden_RH @ weight_VH.T
    once = clock.seconds(lambda: torch.mm(hidden_RH, weight_VH.T, out=logits_RV))
    twice = clock.seconds(lambda: (logits_RV @ weight_VH, logits_RV.T @ hidden_RH))
    moved = logits_RV.nbytes / bandwidth
    return {"forward": once + moved, "forward + backward": once + twice + 3 * moved}


def _time_method(
    level: str,
    name: str,
    build: Callable[[], Calls],
    clock: Clock,
    floors: dict[str, float],
    expected_R: torch.Tensor,
    known: list[torch.Tensor] | None,
) -> Iterator[Row]:
    """Yield the rows of one method, or one row with the reason why it cannot run."""
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
    calls = None  # Release the memory of this method before the next one is measured.
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
            f"the benchmark needs a process of its own, but this is one of {dist.get_world_size()} ranks"
        )
    try:
        yield
    finally:
        if started:
            dist.destroy_process_group()


def table(rows: list[Row]) -> str:
    """Return the rows as Markdown, one table per level."""
    lines = []
    for level in ("tile", "layer"):
        lines += [
            f"### {level}\n",
            "| method | step | ms | of the floor | peak MiB | error | |",
            "| --- | --- | --- | --- | --- | --- | --- |",
        ]
        for row in rows:
            if row.level != level:
                continue
            time_ms = "" if row.seconds is None else f"{1e3 * row.seconds:.3f}"
            ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
            peak = "" if row.peak_bytes is None else f"{row.peak_bytes / 2**20:,.0f}"
            error = "" if row.error is None else f"{row.error:.1e}"
            lines.append(
                f"| {row.method} | {row.step} | {time_ms} | {ratio} | {peak} | {error} | {row.note} |"
            )
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Measure, print the tables, and write them as JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--device", choices=["cuda", "cpu"], default="cuda" if torch.cuda.is_available() else "cpu"
    )
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--tokens", type=int, help="number of tokens of the output layer")
    parser.add_argument("--vocab", type=int)
    parser.add_argument("--hidden", type=int)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
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
