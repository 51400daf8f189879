"""Compare the weights of two Hugging Face checkpoints tensor by tensor, without loading them completely.

    python tools/compare_hf.py runs/a/hf runs/b/hf [--tolerance 1e-6]

Prints every tensor that exists only in one checkpoint, has different shapes or dtypes, or differs by more than the
tolerance (default: in any bit), and the number of such tensors. Exit code 0 means that the checkpoints are equal, 1
that they differ, 2 that one cannot be read.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from megatron_prime.hf.checkpoint import HFCheckpointReader

ROWS_AT_A_TIME = 4096
"""Rows of a tensor that are in memory at a time, per checkpoint."""


def differences(first: HFCheckpointReader, second: HFCheckpointReader, tolerance: float) -> Iterator[str]:
    """Yield one line for each tensor that differs, ordered by name."""
    names = set(first.tensor_names), set(second.tensor_names)
    for name in sorted(names[0] | names[1]):
        if name not in names[0] or name not in names[1]:
            yield f"{name}: only in {second.path if name in names[1] else first.path}"
            continue
        shapes = first.shape_of(name), second.shape_of(name)
        dtypes = first.dtype_of(name), second.dtype_of(name)
        if shapes[0] != shapes[1] or dtypes[0] != dtypes[1]:
            yield f"{name}: {shapes[0]} {dtypes[0]} and {shapes[1]} {dtypes[1]}"
            continue
        num_different, largest = _compare(name, first, second)
        if num_different and not largest <= tolerance:
            yield f"{name}: {num_different} elements differ, by up to {largest:.3g}"


def _compare(name: str, first: HFCheckpointReader, second: HFCheckpointReader) -> tuple[int, float]:
    """Return (number of different elements, largest absolute difference).

    The difference is NaN if an element is NaN in only one of the checkpoints.
    """
    num_different, largest = 0, torch.zeros((), dtype=torch.float64)
    num_rows = first.shape_of(name)[0]
    for start in range(0, num_rows, ROWS_AT_A_TIME):
        length = min(ROWS_AT_A_TIME, num_rows - start)
        one, other = (reader.read_slice(name, 0, start, length).double() for reader in (first, second))
        different = (one != other) & ~(one.isnan() & other.isnan())
        num_different += int(different.sum())
        if different.any():
            # torch.maximum propagates NaN; max() might drop it.
            largest = torch.maximum(largest, (one - other)[different].abs().max())
    return num_different, float(largest)


def main() -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    parser.add_argument("--tolerance", type=float, default=0.0, help="largest accepted absolute difference")
    options = parser.parse_args()
    try:
        first, second = HFCheckpointReader(options.first), HFCheckpointReader(options.second)
        lines = list(differences(first, second, options.tolerance))
    except ValueError as error:
        print(f"compare_hf: {error}", file=sys.stderr)
        return 2
    for line in lines:
        print(line)
    num_tensors = len({*first.tensor_names, *second.tensor_names})
    print(f"{len(lines)} of {num_tensors} tensors differ")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
