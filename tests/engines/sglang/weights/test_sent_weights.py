"""Changes applied to what was sent last give what is sent now, bit for bit, whatever the bits are."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_prime.engines.sglang.loader.changes import BLOCK, bits_of, write_changes
from megatron_prime.engines.sglang.weights import sent_weights
from megatron_prime.engines.sglang.weights.sent_weights import SentWeights

TYPES = (torch.bfloat16, torch.float32, torch.float16, torch.float8_e4m3fn)
ODD_BITS = {
    1: [0x00, 0x80, 0x7F, 0xFF, 0x01],
    2: [0x0000, -0x8000, 0x7FC0, 0x7FC1, -0x003F, 0x7F80, 0x0001],
    4: [0x00000000, -0x80000000, 0x7FC00000, 0x7FC00001, -0x003FFFFF, 0x7F800000, 0x00000001],
}
"""By size: 0.0, -0.0, NaNs with different payloads and signs, infinity, a subnormal."""


def random_bits(shape, dtype, generator):
    """Any bits, a third of them special."""
    size = dtype.itemsize
    low = 0 if size == 1 else -(1 << (8 * size - 1))
    words = torch.randint(low, low + (1 << 8 * size), shape, generator=generator)
    special = torch.tensor(ODD_BITS[size])[torch.randint(len(ODD_BITS[size]), shape, generator=generator)]
    words = torch.where(torch.rand(shape, generator=generator) < 1 / 3, special, words)
    return words.to({1: torch.uint8, 2: torch.int16, 4: torch.int32}[size]).view(dtype)


@given(
    st.sampled_from(TYPES),
    st.tuples(st.integers(1, 40), st.integers(1, 40)) | st.tuples(st.integers(0, 3000)),
    st.sampled_from([0.0, 0.01, 0.3, 0.6, 1.0]),
    st.integers(0, 10**6),
)
def test_base_and_changes_give_the_new_bits(dtype, shape, share, seed):
    generator = torch.Generator().manual_seed(seed)
    base, other = (random_bits(shape, dtype, generator) for _ in range(2))
    new = torch.where(torch.rand(shape, generator=generator) < share, bits_of(other), bits_of(base)).view(
        dtype
    )
    sent = SentWeights(is_pinned=False)
    assert sent.advance("w", [base], None, "1") == [None]
    [change] = sent.advance("w", [new], "1", "2")
    held = base.clone()
    num_different = int((bits_of(base) != bits_of(new)).sum())
    if change is None:
        assert num_different * (2 + dtype.itemsize) + 4 >= new.nbytes
    else:
        assert len(change.values) == num_different
        assert sum(part.nbytes for part in change.parts) < max(1, new.nbytes)
        write_changes(held, change)
        assert torch.equal(bits_of(held), bits_of(new))
    # What is kept is what was sent, in either case.
    [change] = sent.advance("w", [new], "2", "3")
    assert change.parts == []


def test_a_tensor_of_several_blocks_and_chunks(monkeypatch):
    monkeypatch.setattr(sent_weights, "CHUNK", 2 * BLOCK)
    old = torch.randn(5 * BLOCK + 13).bfloat16()
    new = old.clone()
    new[torch.tensor([0, BLOCK - 1, 2 * BLOCK, 4 * BLOCK + 1, 5 * BLOCK + 12])] += 1
    sent = SentWeights(is_pinned=False)
    sent.advance("w", [old], None, "1")
    [change] = sent.advance("w", [new], "1", "2")
    assert change.counts.tolist() == [2, 0, 1, 0, 1, 1]
    write_changes(old, change)
    assert torch.equal(old, new)
    assert sent.num_bytes == new.nbytes


def test_more_than_half_of_a_bf16_tensor_is_sent_whole():
    old = torch.zeros(10_000, dtype=torch.bfloat16)
    for num_changed, is_whole in ((4990, False), (5001, True)):
        sent = SentWeights(is_pinned=False)
        sent.advance("w", [old], None, "1")
        new = old.clone()
        new[:num_changed] = 1
        [change] = sent.advance("w", [new], "1", "2")
        assert (change is None) == is_whole
        [again] = sent.advance("w", [new], "2", "3")
        assert again.parts == []


def test_changes_since_other_weights_are_never_given():
    old, new = torch.zeros(100, dtype=torch.bfloat16), torch.ones(100, dtype=torch.bfloat16)
    sent = SentWeights(is_pinned=False)
    assert sent.advance("w", [old], "0", "1") == [None], "nothing has been sent before"
    assert sent.advance("v", [old], "1", "2") == [None], "another slice has been sent before"
    assert sent.advance("w", [new], "0", "2") == [None], "the receiver has older weights"
    assert sent.advance("w", [new], None, "2") == [None], "a repetition"
    [change] = sent.advance("w", [new], "2", "3")
    assert change.parts == []


def test_an_interrupted_update_is_no_base(monkeypatch):
    old = torch.zeros(100, dtype=torch.bfloat16)
    sent = SentWeights(is_pinned=False)
    sent.advance("w", [old], None, "1")
    with monkeypatch.context() as patch:
        patch.setattr(sent_weights, "take_changes", lambda old, new: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            sent.advance("w", [old], "1", "2")
    assert sent.advance("w", [old], "1", "3") == [None]
    assert sent.advance("w", [old], "2", "3") == [None]
