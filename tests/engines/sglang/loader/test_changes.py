"""Changes are written bit for bit, and damaged ones stay inside the tensor."""

import pytest
import torch

from megatron_prime.engines.sglang.loader import changes
from megatron_prime.engines.sglang.loader.changes import (
    WHOLE,
    Changes,
    bits_of,
    num_blocks_in,
    pack,
    packed_size,
    part_sizes,
    unpack,
    write_changes,
)
from megatron_prime.engines.sglang.weights.sent_weights import take_changes


def changed(old, new):
    return take_changes([bits_of(old.contiguous()).reshape(-1).clone()], new)


def matrices(dtype, places):
    """Two matrices that differ at some places of the flattened matrix."""
    old = torch.randn(300, 500, generator=torch.Generator().manual_seed(0)).to(dtype)
    new = old.clone()
    new.view(-1)[places] += 1
    return old, new


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("is_column_slice", [False, True])
def test_places_are_found_again_in_every_block(dtype, is_column_slice):
    old, new = matrices(dtype, [0, 65_535, 65_536, 131_071, 131_072, 149_999])
    target = torch.zeros(300, 700, dtype=dtype).narrow(1, 100, 500) if is_column_slice else old.clone()
    target.copy_(old)
    write_changes(target, changed(old, new))
    assert torch.equal(target, new)


def test_a_message_holds_changed_unchanged_and_whole_tensors_of_every_type():
    generator = torch.Generator().manual_seed(1)
    shapes = [(7,), (3, 5), (1,), (200, 11), (130,)]
    types = [torch.bfloat16, torch.float8_e4m3fn, torch.float32, torch.bfloat16, torch.float32]
    old = [torch.randn(s, generator=generator).to(t) for s, t in zip(shapes, types, strict=True)]
    new = [tensor.clone() for tensor in old]
    bits_of(new[1])[2, 4] ^= 1
    bits_of(new[3])[::19, 3] ^= 1
    new[4] += 1
    found = [changed(a, b) for a, b in zip(old, new, strict=True)]
    nums = [WHOLE if change is None else len(change.values) for change in found]
    assert nums == [0, 1, 0, 11, WHOLE]
    parts = [p for t, c in zip(new, found, strict=True) for p in ([t] if c is None else c.parts)]
    sizes = [size for tensor, num in zip(new, nums, strict=True) for size in part_sizes(tensor, num)]
    assert sizes == [part.nbytes for part in parts]
    message = torch.empty(packed_size(sizes), dtype=torch.uint8)
    pack(parts, message)
    unpack(message, old, nums)
    assert all(torch.equal(bits_of(a), bits_of(b)) for a, b in zip(old, new, strict=True))


@pytest.mark.parametrize("num_changes", [-2, 16])
def test_an_impossible_number_of_changes_is_refused(num_changes):
    with pytest.raises(RuntimeError, match=f"15 elements was announced with {num_changes} changes"):
        part_sizes(torch.empty(3, 5), num_changes)


@pytest.mark.parametrize("counts", [[5, 5, 5], [-9, 2**31 - 1, 0], [3, 0, 0]])
@pytest.mark.parametrize("place", [-(2**15), 2**15 - 1])
def test_damaged_changes_do_not_leave_the_tensor(counts, place):
    around = torch.zeros(200_002, dtype=torch.bfloat16)
    damaged = Changes(
        torch.tensor(counts, dtype=torch.int32),
        torch.full((3,), place, dtype=torch.int16),
        torch.ones(3, dtype=torch.int16),
    )
    assert num_blocks_in(200_000) == 4
    write_changes(around[1:-1], damaged)
    assert not around[0] and not around[-1]


def test_large_numbers_of_changes_are_written_in_chunks(monkeypatch):
    monkeypatch.setattr(changes, "CHUNK", 1000)
    old, new = matrices(torch.bfloat16, torch.arange(0, 150_000, 37))
    found = changed(old, new)
    write_changes(old, found)
    assert len(found.values) > 4000 and torch.equal(old, new)
