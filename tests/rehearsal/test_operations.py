"""Waits, faults, FLOPs and values of operations on a device that does not exist."""

import pytest
import torch

from megatron_prime.rehearsal.ledger import Ledger
from megatron_prime.rehearsal.operations import Operations


@pytest.fixture
def operations():
    ledger = Ledger("meta", lambda: "phase", lambda: "here")
    with Operations(ledger, lambda: "phase", lambda: "here") as operations:
        yield operations


def counts(operations):
    return operations.phases["phase"]


def test_values_from_the_host_can_be_read_back(operations):
    lengths = torch.tensor([3, 1, 2]).to("meta")
    mask = torch.arange(4, device="meta")[None] < lengths[:, None]
    assert lengths.cumsum(0).cpu().tolist() == [3, 4, 6]
    assert mask.sum().item() == 6
    assert mask.nonzero().shape == (6, 2)
    assert torch.empty(3, 4, device="meta")[mask].shape == (6,)
    assert counts(operations).assumed.total() == 0
    assert counts(operations).waits["item(): here"] == 1
    assert counts(operations).waits["boolean index: here"] == 1


def test_values_of_weights_are_assumed_to_be_healthy(operations):
    logits = torch.empty(6, 4, device="meta")
    assert bool(logits.isfinite().all())
    assert not bool(logits.isnan().any())
    assert logits.sum().item() == 1.0
    chosen = torch.zeros(4, dtype=torch.int64, device="meta").scatter_add_(
        0, logits.topk(2).indices.flatten(), torch.ones(12, dtype=torch.int64, device="meta")
    )
    assert chosen.cpu().tolist() == [3, 3, 3, 3]
    assert counts(operations).assumed.total() == 1


def test_what_overwrites_known_values_makes_them_unknown(operations):
    known = torch.zeros(3, device="meta")
    known[1:] += torch.empty(2, device="meta")
    known.sum().item()
    assert counts(operations).assumed.total() == 1


def test_tensors_of_two_devices_are_a_fault(operations):
    torch.empty(3, device="meta") + torch.ones(3)
    torch.empty(3, device="meta") * torch.tensor(2.0)
    assert list(counts(operations).faults) == ["host and device tensors in aten.add.Tensor: here"]


def test_an_overflow_of_int32_is_a_fault(operations):
    sizes = torch.tensor([2**30, 2**30, 5], dtype=torch.int32).to("meta")
    sizes.cumsum(0, dtype=torch.int32)
    sizes + 1
    assert list(counts(operations).faults) == ["int32 overflow in aten.cumsum.default: here"]


def test_flops_and_kernels_are_counted(operations):
    left, right = torch.empty(3, 4, device="meta"), torch.empty(4, 5, device="meta")
    for _ in range(2):
        (left @ right).T.detach()
    assert (counts(operations).kernels, counts(operations).flops) == (2, 2 * 2 * 3 * 4 * 5)


def test_a_wrong_shape_is_an_error(operations):
    with pytest.raises(RuntimeError, match="same reduction dim"):
        torch.empty(3, 4, device="meta") @ torch.empty(5, 4, device="meta")
