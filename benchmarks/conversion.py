"""Measure peak memory and speed of the checkpoint conversions, on a model with few layers and 7B-sized tensors.

    python -m benchmarks.conversion [--hidden 3584] [--ffn 18944] [--vocab 152064] [--layers 2]

Each direction runs in a separate process. Peak memory is the kernel's figure for that process (VmHWM) minus what it
held before the conversion; the page cache is not counted, because the kernel can reclaim it. Prints one line per
direction, and the sizes of the model and of its largest tensor.
"""

import argparse
import json
import multiprocessing
import tempfile
import time
from pathlib import Path

import torch

from megatron_prime.conversion.to_hf import megatron_to_hf
from megatron_prime.conversion.to_megatron import hf_to_megatron
from megatron_prime.hf.checkpoint import HFCheckpointWriter, TensorSpec
from megatron_prime.hf.mapping import hf_tensors, parameters_of
from megatron_prime.hf.shape import read_shape
from megatron_prime.hf.weight_files import RELEASE
from megatron_prime.observability.progress import Progress

SETTINGS = {
    "model_type": "qwen2",
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}


def write_model(folder, *, hidden, ffn, vocab, layers):
    """Write an HF checkpoint of these sizes with random bf16 weights, tensor by tensor; return its number of bytes."""
    source = folder.with_name(f"{folder.name}_config")
    source.mkdir()
    sizes = {
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "vocab_size": vocab,
        "num_hidden_layers": layers,
    }
    (source / "config.json").write_text(json.dumps(SETTINGS | sizes))
    shapes = hf_tensors(read_shape(source))
    specs = {name: TensorSpec(shape, torch.bfloat16) for name, shape in shapes.items()}
    with HFCheckpointWriter(folder, specs, companions_from=source) as writer:
        for name, shape in shapes.items():
            # Random bits: some are NaN, which the comparison of bytes must handle too.
            writer.write(name, torch.randint(-(2**15), 2**15, shape, dtype=torch.int16).view(torch.bfloat16))
    return sum(spec.num_bytes for spec in specs.values())


def largest_tensor(folder):
    """Return the bytes of the largest tensor, in Megatron's format, which fuses several HF tensors into one."""
    shape = read_shape(folder)
    ours = parameters_of(
        shape,
        tp_size=1,
        tp_rank=0,
        layers=range(shape.num_layers),
        is_first_stage=True,
        is_last_stage=True,
    )
    return 2 * max(torch.Size(parameter.shape).numel() for parameter in ours)


def convert(direction, source, output):
    """Convert in one direction with one worker, in this process."""
    if direction == "to Megatron":
        hf_to_megatron(source, output, num_workers=1, max_file_bytes=1 << 30, progress=Progress(False))
    else:
        megatron_to_hf(
            source / RELEASE,
            source,
            output,
            dtype=None,
            num_workers=1,
            max_file_bytes=1 << 30,
            progress=Progress(False),
        )


def measure(direction, source, output):
    """Return (peak bytes beyond those at the start, seconds) of a conversion in a new process."""
    # VmHWM never decreases, so every measurement needs a fresh process.
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measured, (direction, source, output))


def _measured(direction, source, output):
    torch.set_num_threads(1)
    before = _status("VmRSS")
    started = time.monotonic()
    convert(direction, source, output)
    return _status("VmHWM") - before, time.monotonic() - started


def _status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in (("hidden", 3584), ("ffn", 18944), ("vocab", 152064), ("layers", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as root:
        hf, megatron, back = (Path(root, name) for name in ("hf", "megatron", "back"))
        size = write_model(hf, **vars(options))
        largest = largest_tensor(hf)
        print(f"model {size / 2**20:,.0f} MiB, largest tensor {largest / 2**20:,.0f} MiB")
        for direction, source, output in (("to Megatron", hf, megatron), ("to HF", megatron, back)):
            peak, seconds = measure(direction, source, output)
            print(
                f"{direction}: peak {peak / 2**20:,.0f} MiB = {peak / largest:.2f} of the largest tensor,"
                f" {seconds:.1f} s, {size / seconds / 2**20:,.0f} MiB/s"
            )


if __name__ == "__main__":
    main()
