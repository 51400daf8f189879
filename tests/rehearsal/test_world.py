"""The switch is tested by whole rehearsals (test_rank.py); here are its parts."""

import torch

from megatron_prime.observability import heartbeat
from megatron_prime.rehearsal.ledger import Ledger
from megatron_prime.rehearsal.values import constant, twin_of
from megatron_prime.rehearsal.world import current_phase, current_place, fill, follow_resizes


def test_a_place_is_a_line_of_this_project():
    with heartbeat.phase("policy"):
        assert current_phase() == "policy"
    found = {"current_place": current_place}
    code = "def probe():\n    return current_place()"
    exec(compile(code, "/checkout/megatron_prime/models/probe.py", "exec"), found)
    assert found["probe"]() == "models/probe.py:2 probe"


def test_a_resized_storage_is_counted(monkeypatch):
    monkeypatch.setattr(torch.UntypedStorage, "resize_", torch.UntypedStorage.resize_)
    ledger = Ledger("meta", lambda: "phase", lambda: "here")
    follow_resizes(ledger, torch.device("meta"))
    storage = torch.empty(10, dtype=torch.uint8, device="meta").untyped_storage()
    storage.resize_(25)
    assert ledger.live == 25
    storage.resize_(0)
    assert ledger.live == 0


def test_a_collective_of_large_constants_leaves_unknown_values():
    outputs = [torch.empty(size, device="meta") for size in (1 << 30, 8)]
    for output in outputs:
        constant(output, 0)
        source = torch.empty(output.numel() // 2, device="meta")
        constant(source, 1)
        fill([output], [source])
    assert twin_of(outputs[0]) is None
    assert twin_of(outputs[1]).tolist() == [1] * 8
