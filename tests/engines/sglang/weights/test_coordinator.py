"""The driver's decisions in an attempt. Whole attempts run on real servers in test_shard_sync.py."""

import base64
import json
import pickle

import pytest

from megatron_prime.engines.sglang.client import ServerRefusedError, ServerUnreachableError
from megatron_prime.engines.sglang.loader.signing import FORGED, SignedStore
from megatron_prime.engines.sglang.weights.bucketed_plan import BucketedPlan
from megatron_prime.engines.sglang.weights.coordinator import Coordinator, Fault, _Hello
from megatron_prime.engines.sglang.weights.sender import Rendezvous, SendReport
from megatron_prime.resharding.layouts import EngineLayout, TrainingLayout
from megatron_prime.resharding.plan import plan_reshard
from tests.support.plan_shapes import make_shape


@pytest.fixture
def coordinator():
    plan = plan_reshard(make_shape(), TrainingLayout(tp=2), EngineLayout.consecutive(2, 2, first_rank=2))
    return Coordinator(
        None,
        BucketedPlan(plan, 10**6, "bfloat16"),
        num_senders=2,
        backend="gloo",
        timeout_s=5,
        store=SignedStore.host("127.0.0.1", 5, "key"),
    )


def instructions_in(payload):
    [(text, tensor)] = pickle.loads(base64.b64decode(payload))
    assert tensor.numel() == 0
    return json.loads(text)


def test_the_layout_of_the_slices_is_sent_once_to_each_server_process(coordinator):
    first = instructions_in(coordinator._payload((1, 0), "a1", "http://x:1"))
    assert first["body"] == coordinator._plan.incoming(1, 0)
    assert (first["rank"], first["attempt"], first["store"][0]) == (2, "a1", "127.0.0.1")
    again = instructions_in(coordinator._payload((1, 0), "a2", "http://x:1"))
    assert again["body"] is None and again["layout"] == first["layout"]
    assert instructions_in(coordinator._payload((1, 0), "a3", "http://x:2"))["body"]
    assert instructions_in(coordinator._payload((1, 1), "a3", "http://x:2"))["body"] != first["body"]


def test_receivers_that_said_hello_come_after_the_training_ranks(coordinator):
    hellos = {(1, 1): _Hello([], []), (1, 0): _Hello([], []), (0, 0): _Hello([], [])}
    rendezvous = coordinator._rendezvous("a", hellos, {0: Fault("gone")}, [])
    assert rendezvous.members == (((1, 0), 2), ((1, 1), 3)) and rendezvous.size == 4
    assert coordinator._rendezvous("a", hellos, {0: Fault("x"), 1: Fault("y")}, []) is None


def test_a_group_is_reused_if_all_have_it_and_it_has_these_members(coordinator):
    everyone = {(engine, tp_rank): _Hello(["old"], []) for engine in (0, 1) for tp_rank in (0, 1)}
    group = coordinator._rendezvous("a1", everyone, {}, []).group
    kept = {target: _Hello([group], []) for target in everyone}
    assert coordinator._rendezvous("a2", kept, {}, [group]).group == group
    assert coordinator._rendezvous("a2", kept, {}, []).group != group
    assert coordinator._rendezvous("a2", kept | {(0, 1): _Hello([], [])}, {}, [group]).group != group
    assert coordinator._rendezvous("a2", kept, {0: Fault("gone")}, [group]).group != group


def test_changes_go_to_servers_all_of_whose_ranks_hold_the_push_before(coordinator):
    base = f"{coordinator._layout}/6"

    def patched(held, patchable=(0, 1)):
        hellos = {target: _Hello([], labels) for target, labels in held.items()}
        rendezvous = coordinator._rendezvous("a", hellos, {}, [])
        found = coordinator._with_changes(rendezvous, hellos, 7, patchable)
        assert (found.label, found.base) == (f"{coordinator._layout}/7", base)
        return set(found.patched)

    everyone = {(engine, tp_rank): [base] for engine in (0, 1) for tp_rank in (0, 1)}
    assert patched(everyone) == {*everyone}
    assert patched(everyone | {(0, 1): []}) == {(1, 0), (1, 1)}, "half of a server has restarted"
    assert patched(everyone | {(0, 1): [f"{coordinator._layout}/5"]}) == {(1, 0), (1, 1)}, "missed a push"
    assert patched(everyone | {(1, 0): ["another run/6"]}) == {(0, 0), (0, 1)}
    assert patched(everyone, patchable=[0]) == {(0, 0), (0, 1)}
    assert patched(everyone, patchable=[]) == set()


def test_a_server_must_report_the_sum_of_all_ranks_checksums(coordinator):
    reports = [
        SendReport(digests={(0, 1): (2**64 - 1, 5)}),
        SendReport(digests={(0, 1): (3, 6)}),
        SendReport(),
    ]
    with pytest.raises(ServerRefusedError, match="TP rank 1 of server 0 gave no report"):
        coordinator._check_report((0, 1), "a", reports)
    coordinator._store.under("a").set("report/1", {"digest": [2, 11]})
    coordinator._check_report((0, 1), "a", reports)
    coordinator._store.under("a").set("report/1", {"digest": [2, 12]})
    with pytest.raises(ServerRefusedError, match="holds other weights than were sent"):
        coordinator._check_report((0, 1), "a", reports)


def test_a_receivers_error_explains_what_senders_saw_unless_they_read_a_forged_value(coordinator):
    rendezvous = Rendezvous("a", ("h", 1), "key", "g", 4, (((0, 0), 2), ((1, 1), 3)), 5.0)
    coordinator._store.under("a").set("report/3", {"error": "a wrong checksum", "is_damaged": True})
    explained = {1: Fault("TP rank 1: a wrong checksum", is_damaged=True)}
    assert coordinator._with_reported_faults({}, rendezvous) == explained
    assert coordinator._with_reported_faults({1: Fault("connection closed")}, rendezvous) == explained
    seen = {0: Fault("connection closed"), 1: Fault(f"rank 0: the value of x {FORGED}")}
    assert coordinator._with_reported_faults(seen, rendezvous) == seen


@pytest.mark.parametrize("error", [ServerUnreachableError("no answer"), ServerRefusedError("no")])
def test_a_fault_knows_whether_the_server_may_be_a_new_process(error):
    assert Fault.of(error) == Fault(str(error), isinstance(error, ServerUnreachableError))
