"""Bytes are counted while storages live, by owner, with the peak of each phase."""

import torch

from megatron_prime.rehearsal.ledger import Ledger, Owner


def make_ledger():
    state = {"phase": "first"}
    return Ledger("meta", lambda: state["phase"], lambda: "here"), state


def on_device(ledger, size):
    tensor = torch.empty(size, dtype=torch.uint8, device="meta")
    ledger.see(tensor.untyped_storage())
    return tensor


def test_the_peak_is_divided_by_owner():
    ledger, state = make_ledger()
    weights = on_device(ledger, 100)
    ledger.assign([weights], "policy", "weights")
    with ledger.owned("policy", "activations"):
        short = on_device(ledger, 70)
    state["phase"] = "second"
    del short
    ledger.touch()
    assert ledger.live == 100
    first, second = ledger.phases["first"], ledger.phases["second"]
    assert first.at_peak == {Owner("policy", "weights"): 100, Owner("policy", "activations"): 70}
    assert (first.peak, first.largest, first.largest_place, second.peak) == (170, 100, "here", 100)
    assert str(Owner("policy", "weights")) == "policy weights"


def test_views_count_once_and_resizes_count():
    ledger, _ = make_ledger()
    tensor = on_device(ledger, 40)
    ledger.see(tensor[5:].untyped_storage())
    assert ledger.live == 40
    ledger.see(tensor.untyped_storage().resize_(0))
    assert ledger.live == 0


def test_host_memory_is_counted_apart():
    ledger, _ = make_ledger()
    with ledger.on_host():
        tensor = on_device(ledger, 40)
    assert (ledger.live, ledger.host_bytes) == (0, 40)
    assert not ledger.phases, "host memory is no part of a peak on the device"
    ledger.see(tensor.untyped_storage())
    assert (ledger.live, ledger.host_bytes) == (0, 40)
    del tensor
    assert ledger.host_bytes == 0
