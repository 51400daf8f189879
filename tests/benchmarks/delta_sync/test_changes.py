"""The shares of changed elements and of the blocks that hold any."""

import torch

from benchmarks.delta_sync.changes import _shares


def test_shares_are_of_elements_and_of_blocks_of_bytes():
    before = [torch.zeros(3000, dtype=torch.bfloat16), torch.zeros(1096, dtype=torch.bfloat16)]
    after = [tensor.clone() for tensor in before]
    after[0][[0, 31, 32]] = 1
    after[1][-1] = -0.0
    # 4,096 elements are 128 blocks of 64 bytes, 32 of 256 and 2 of 4,096.
    assert _shares(before, after) == [4 / 4096, 3 / 128, 2 / 32, 2 / 2]
