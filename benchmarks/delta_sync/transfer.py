"""Bytes and seconds of pushes to a real SGLang server, whole and changes alone, in turn within one run."""

import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import torch

from benchmarks.delta_sync.transport import Floor, copy_seconds
from benchmarks.reshard_measured import CONFIG as LARGER
from megatron_prime.engines.sglang.engine import SGLangEngine
from megatron_prime.engines.sglang.loader.changes import bits_of
from megatron_prime.engines.sglang.weights.shard_sync import ShardSync
from megatron_prime.engines.sglang.weights.source import WeightSource
from megatron_prime.resharding.layouts import EngineLayout
from tests.support.one_rank import OneRank
from tests.support.sglang_live import sglang_settings

CONFIG = LARGER | {
    "num_hidden_layers": 8,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "vocab_size": 16384,
    "architectures": ["Qwen3ForCausalLM"],
}
SHARES = (0.0, 0.005, 0.01, 0.03, 0.1, 0.3)
"""Shares of the elements that change before a push of changes; a full push follows in the same round."""


def measure_transfer(num_rounds: int) -> Iterator[dict[str, float]]:
    """Yield the measurements of each push; a share of -1 stands for a full one."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "config.json").write_text(json.dumps(CONFIG))
        engine = SGLangEngine(
            folder, device="cpu", dtype="bf16", seed=0, settings=sglang_settings(), run_dir=folder / "run"
        )
        floor = Floor()
        try:
            yield from _rounds(engine, folder, floor, num_rounds)
        finally:
            floor.close()
            engine.close()


def _rounds(engine: SGLangEngine, folder: Path, floor: Floor, num_rounds: int) -> Iterator[dict[str, float]]:
    policy = OneRank(folder, torch.bfloat16)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in policy.parameters.items():
        policy.parameters[name] = (torch.randn(parameter.shape, generator=generator) * 0.02).bfloat16()
    source = WeightSource.build(
        policy.shape,
        policy.parameters,
        policy.topology,
        torch.bfloat16,
        EngineLayout.consecutive(1, 1, first_rank=1),
    )
    sync = ShardSync(engine, source, timeout_s=300)
    sync.push(0)
    for number in range(1, num_rounds + 1):
        for share in (*SHARES, None):
            for parameter in policy.parameters.values():
                is_changed = torch.rand(parameter.shape, generator=generator) < (
                    0.01 if share is None else share
                )
                # The lowest bit: an element that moves to the next value.
                bits_of(parameter)[is_changed] ^= 1
            start = time.perf_counter()
            if share is None:
                with mock.patch.object(ShardSync, "_patchable", return_value=[]):
                    found = sync.push(number)
            else:
                found = sync.push(number)
            seconds = time.perf_counter() - start
            num_bytes = round(found["gib_sent"] * (1 << 30))
            yield {
                "round": number,
                "share": -1.0 if share is None else share,
                "seconds": seconds,
                "bytes": num_bytes,
                "patched": found["num_patched"],
                "floor_s": floor.seconds(max(1, num_bytes)),
                "copy_s": copy_seconds(max(1, num_bytes)),
            }
    assert sync.full_check() == {}, "the server holds other weights than the trainer"
