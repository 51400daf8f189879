"""What the driver decides in an attempt. Attempts as a whole run against real servers in test_sglang_path.py."""

import base64
import json
import pickle

import pytest

from megatron_prime.engines.sglang.client import ServerRefusedError, ServerUnreachableError
from megatron_prime.engines.sglang.weights.attempt import Conductor, Fault
from megatron_prime.engines.sglang.weights.manifest import Manifests
from megatron_prime.engines.sglang.weights.send import Meeting, SendReport
from megatron_prime.resharding.layouts import EngineLayout, TrainingLayout
from megatron_prime.resharding.plan import plan_reshard
from tests.support.plan_shapes import make_shape


@pytest.fixture
def conductor():
    plan = plan_reshard(make_shape(), TrainingLayout(tp=2), EngineLayout.consecutive(2, 2, first_rank=2))
    return Conductor(None, Manifests(plan, 10**6, "bfloat16"), num_senders=2, backend="gloo", timeout_s=5)


def manifest_in(payload):
    [(text, tensor)] = pickle.loads(base64.b64decode(payload))
    assert tensor.numel() == 0
    return json.loads(text)


def test_the_places_of_the_slices_are_told_once_to_each_server(conductor):
    first = manifest_in(conductor._payload((1, 0), "a1", "127.0.0.1", "http://x:1"))
    assert json.loads(first["body"]) == json.loads(json.dumps(conductor._manifests.incoming(1, 0)))
    assert (first["rank"], first["attempt"], first["store"][0]) == (2, "a1", "127.0.0.1")
    again = manifest_in(conductor._payload((1, 0), "a2", "127.0.0.1", "http://x:1"))
    assert again["body"] is None and again["layout"] == first["layout"]
    assert manifest_in(conductor._payload((1, 0), "a3", "127.0.0.1", "http://x:2"))["body"]
    assert manifest_in(conductor._payload((1, 1), "a3", "127.0.0.1", "http://x:2"))["body"] != first["body"]


def test_receivers_that_said_hello_come_after_the_training_ranks(conductor):
    hellos = {(1, 1): [], (1, 0): [], (0, 0): []}
    meeting = conductor._meeting("a", "host", hellos, {0: Fault("gone")}, [])
    assert meeting.members == (((1, 0), 2), ((1, 1), 3)) and meeting.size == 4
    assert conductor._meeting("a", "host", hellos, {0: Fault("x"), 1: Fault("y")}, []) is None


def test_a_group_is_used_again_if_all_have_it_and_it_has_these_members(conductor):
    everyone = {(engine, tp_rank): ["old"] for engine in (0, 1) for tp_rank in (0, 1)}
    group = conductor._meeting("a1", "h", everyone, {}, []).group
    kept = {target: [group] for target in everyone}
    assert conductor._meeting("a2", "h", kept, {}, [group]).group == group
    assert conductor._meeting("a2", "h", kept, {}, []).group != group
    assert conductor._meeting("a2", "h", kept | {(0, 1): []}, {}, [group]).group != group
    assert conductor._meeting("a2", "h", kept, {0: Fault("gone")}, [group]).group != group


def test_a_server_must_hold_the_sum_of_what_all_ranks_sent(conductor):
    reports = [
        SendReport(digests={(0, 1): (2**64 - 1, 5)}),
        SendReport(digests={(0, 1): (3, 6)}),
        SendReport(),
    ]
    with pytest.raises(ServerRefusedError, match="TP rank 1 of server 0 gave no report"):
        conductor._check_report((0, 1), "a", reports)
    conductor._store.set("a", "report/1", {"digest": [2, 11]})
    conductor._check_report((0, 1), "a", reports)
    conductor._store.set("a", "report/1", {"digest": [2, 12]})
    with pytest.raises(ServerRefusedError, match="holds other weights than were sent"):
        conductor._check_report((0, 1), "a", reports)


def test_what_a_receiver_says_of_its_failure_is_its_servers_fault(conductor):
    meeting = Meeting("a", ("h", 1), "g", 4, (((0, 0), 2), ((1, 1), 3)), 5.0)
    conductor._store.set("a", "report/3", {"error": "a wrong checksum"})
    assert conductor._told_faults(meeting) == {1: Fault("TP rank 1: a wrong checksum")}


@pytest.mark.parametrize("error", [ServerUnreachableError("no answer"), ServerRefusedError("no")])
def test_a_fault_knows_whether_the_server_may_be_a_new_process(error):
    assert Fault.of(error) == Fault(str(error), isinstance(error, ServerUnreachableError))


def test_one_nodes_job_meets_on_its_loopback(conductor, monkeypatch):
    import asyncio
    from types import SimpleNamespace

    async def clients():
        return [SimpleNamespace(url="http://127.0.0.1:1")]

    conductor._fleet = SimpleNamespace(clients=clients)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    assert asyncio.run(conductor._advertised_host()) == "127.0.0.1"
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.2")  # another address of this machine's
    assert asyncio.run(conductor._advertised_host()).startswith("127.")
