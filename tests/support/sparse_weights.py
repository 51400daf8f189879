"""Weight files with valid headers and no content, for checks that read headers alone. Standard library only."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

from megatron_prime.hf.mapping import hf_tensors
from megatron_prime.hf.shape import read_shape

BYTES = {"F32": 4, "BF16": 2, "F16": 2, "I64": 8, "F8_E4M3": 1}


def write_weights(
    folder: Path, changes: Mapping[str, tuple[int, ...] | None] | None = None, dtype: str = "BF16"
) -> Path:
    """Write model.safetensors for the config.json of a folder: its data are zeros that occupy no disk space.

    `changes` gives tensors another shape; None leaves them out.
    """
    shapes = {**hf_tensors(read_shape(folder)), **(changes or {})}
    return write_file(
        folder / "model.safetensors", {name: s for name, s in shapes.items() if s is not None}, dtype
    )


def write_file(path: Path, shapes: Mapping[str, tuple[int, ...]], dtype: str = "BF16") -> Path:
    """Write a safetensors file with tensors of these shapes."""
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + math.prod(shape) * BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded)
    os.truncate(path, 8 + len(encoded) + end)
    return path
