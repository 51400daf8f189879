"""Compare the weights of two Hugging Face checkpoints, tensor by tensor, without loading either whole.

    python tools/compare_hf.py runs/a/hf runs/b/hf [--tolerance 1e-6]

Prints every tensor that is missing on a side, has another shape or type, or differs by more than the tolerance
(default: any bit), and a closing line. Exit code 0 when the checkpoints agree, 1 when they differ, 2 when one cannot be
read.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from megatron_prime.hf.checkpoint import HFCheckpointReader

ROWS_AT_A_TIME = 4096
"""Rows of a tensor that are in memory at once, of each checkpoint."""


def differences(first: HFCheckpointReader, second: HFCheckpointReader, tolerance: float) -> Iterator[str]:
    """One line for each tensor in which the checkpoints differ, in order of name."""
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
    """(elements that differ, largest absolute difference); the latter is NaN where one side alone is not a number."""
    num_different, largest = 0, torch.zeros((), dtype=torch.float64)
    num_rows = first.shape_of(name)[0]
    for start in range(0, num_rows, ROWS_AT_A_TIME):
        length = min(ROWS_AT_A_TIME, num_rows - start)
        one, other = (reader.read_slice(name, 0, start, length).double() for reader in (first, second))
        different = (one != other) & ~(one.isnan() & other.isnan())
        num_different += int(different.sum())
        if different.any():
            # torch.maximum hands NaN on, where max() would hide it.
            largest = torch.maximum(largest, (one - other)[different].abs().max())
    return num_different, float(largest)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    parser.add_argument(
        "--tolerance", type=float, default=0.0, help="largest absolute difference that is accepted"
    )
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
