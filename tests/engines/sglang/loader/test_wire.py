"""Checksums against plain integers, the grouping of messages, and an exchange by gloo."""

import datetime
import struct
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.distributed as dist

from megatron_prime.engines.sglang.loader import wire
from megatron_prime.engines.sglang.loader.signing import ForgedValueError, SignedStore
from megatron_prime.engines.sglang.loader.wire import (
    check_nccl,
    checksum,
    close_groups,
    exchange,
    group_messages,
    make_group,
    verify_checksums,
    warm_up,
)


def integers(tensor):
    """The bits of each element as a signed integer (bytes unsigned), by struct."""
    raw = bytes(tensor.contiguous().view(torch.uint8).flatten().tolist())
    code = {1: "B", 2: "h", 4: "i"}[tensor.element_size()]
    return struct.unpack(f"<{tensor.numel()}{code}", raw)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
def test_the_checksum_is_the_sum_and_the_weighted_sum_of_the_bits(dtype, monkeypatch):
    monkeypatch.setattr(wire, "_CHUNK", 6)
    monkeypatch.setattr(wire, "_WIDTH", 3)
    tensor = torch.randn(5, 9, generator=torch.Generator().manual_seed(0)).to(dtype)
    for part in (tensor, tensor[1:3], tensor[:, 2:5], tensor[0]):
        words = integers(part)
        expected = [sum(words), sum(place * word for place, word in enumerate(words, 1))]
        assert checksum(part).tolist() == expected


def test_a_changed_bit_a_swap_and_a_moved_block_all_show():
    tensor = torch.randn(64, generator=torch.Generator().manual_seed(1))
    before = checksum(tensor)
    flipped = tensor.clone()
    flipped.view(torch.int32)[10] ^= 1
    swapped = tensor.clone()
    swapped[[3, 40]] = tensor[[40, 3]]
    moved = torch.cat([tensor[32:], tensor[:32]])
    assert not any(torch.equal(checksum(other), before) for other in (flipped, swapped, moved))


def test_only_large_slices_of_rows_are_messages_of_their_own(monkeypatch):
    monkeypatch.setattr(wire, "DIRECT_BYTES", 64)
    rows, columns, small, other = torch.ones(4, 4), torch.ones(4, 4), torch.ones(2), torch.ones(1).bfloat16()
    direct, packed = group_messages([(0, small), (0, rows), (1, columns), (0, other)])
    assert [id(tensor) for tensor in direct] == [id(rows)]
    assert [[id(tensor) for tensor in part] for part in packed] == [[id(small), id(columns)], [id(other)]]


def test_one_byte_floats_can_be_sent_by_gloo():
    store = SignedStore.host("127.0.0.1", 10, "key")
    sent = torch.randn(300).to(torch.float8_e4m3fn)
    got = torch.empty_like(sent)

    def receiver():
        # A connection of its own: a wait occupies it.
        other = SignedStore.connect("127.0.0.1", store.port, 10, "key")
        exchange(make_group("gloo", other, "g", 1, 2, 10), [], [(0, got)], "gloo", 10)

    thread = threading.Thread(target=receiver, daemon=True)
    thread.start()
    assert exchange(make_group("gloo", store, "g", 0, 2, 10), [(1, sent)], [], "gloo", 10) == {}
    thread.join(10)
    assert torch.equal(got.view(torch.uint8), sent.view(torch.uint8))


class CoalescedGloo:
    """NCCL's way to exchange tensors, over gloo: all at once, nothing to wait for without any, a joint connection."""

    def __init__(self, group):
        self._group = group
        self._works = None
        self.is_connected = self.is_aborted = False

    def allreduce(self, tensors):
        self.is_connected = True
        return self._group.allreduce(tensors)

    def _start_coalescing(self):
        self._works = []

    def send(self, tensors, rank, tag):
        self._works.append(self._group.send(tensors, rank, tag))

    def recv(self, tensors, rank, tag):
        self._works.append(self._group.recv(tensors, rank, tag))

    def _end_coalescing(self):
        assert self.is_connected, "NCCL would wait for every rank here"
        works, self._works = self._works, None
        return self if works and not setattr(self, "_pending", works) else None

    def wait(self, timeout):
        return all(work.wait(timeout) for work in self._pending)

    def abort(self):
        self.is_aborted = True


def test_an_nccl_group_connects_all_ranks_first_and_a_rank_may_have_no_part_in_a_bucket():
    store = SignedStore.host("127.0.0.1", 10, "key")
    timeout = datetime.timedelta(seconds=10)
    got = torch.zeros(3)

    def part(rank, outgoing=(), incoming=()):
        other = SignedStore.connect("127.0.0.1", store.port, 10, "key")
        group = CoalescedGloo(make_group("gloo", other, "g", rank, 3, 10))
        warm_up(group, torch.zeros(1), timeout)
        assert exchange(group, outgoing, incoming, "nccl", 10) == {}

    with ThreadPoolExecutor(3) as pool:
        works = [pool.submit(part, 0, [(2, torch.ones(3))]), pool.submit(part, 1)]
        works.append(pool.submit(part, 2, (), [(0, got)]))
        for work in works:
            work.result(20)
    assert got.tolist() == [1.0, 1.0, 1.0]


def test_a_dropped_nccl_group_is_aborted():
    group = CoalescedGloo(None)
    groups = {"a": group}
    close_groups(groups, "nccl")
    assert group.is_aborted and not groups


def test_trainer_and_server_need_one_version_of_nccl():
    for versions in (("2.29.7", "2.29.7"), (None, "2.30.7"), ("2.29.7", None)):
        check_nccl(*versions)
    with pytest.raises(ValueError, match=r"NCCL 2\.29\.7 of the trainer.*NCCL 2\.30\.7 of the engine"):
        check_nccl("2.29.7", "2.30.7")


@pytest.mark.parametrize(
    "value",
    [
        b"10.9.8.7:1",
        b"",
        SignedStore(dist.HashStore(), "another key")._signature("g/0/1", '""').encode() + b' ""',
    ],
    ids=["no signature", "empty", "another key"],
)
def test_no_group_is_made_by_an_address_of_somebody_else(value):
    store = SignedStore.host("127.0.0.1", 5, "key")
    store.raw.set("g/0/1", value)
    with pytest.raises(ForgedValueError, match="the value of g/0/1 at"):
        make_group("gloo", store, "g", 0, 2, 5)


def test_wrong_checksums_are_counted():
    tensors = [torch.ones(3), torch.arange(4.0), torch.zeros(2)]
    expected = torch.stack([checksum(tensor) for tensor in tensors])
    assert torch.equal(verify_checksums(tensors, expected), expected.sum(0))
    expected[1] += 1
    with pytest.raises(RuntimeError, match="1 of 3 slices arrived with a wrong checksum"):
        verify_checksums(tensors, expected)
