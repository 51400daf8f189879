"""Every call on a group of which one rank exists is recorded and answered from its own data."""

import multiprocessing

import torch
import torch.distributed as dist

from megatron_prime.rehearsal.groups import RehearsedGroup, join_alone
from megatron_prime.rehearsal.world import fill


def _answers(sender):
    record = join_alone(1, 4)
    RehearsedGroup.is_known = staticmethod(lambda tensor: not tensor.is_meta)
    RehearsedGroup.fill = staticmethod(fill)
    pair = dist.new_group([1, 3], backend="gloo", group_desc="PAIR")
    assert dist.new_group([0, 2]) is dist.GroupMember.NON_GROUP_MEMBER
    gathered = [None] * 4
    dist.all_gather_object(gathered, {"rank": 1})
    votes = torch.tensor([3])
    dist.all_reduce(votes, op=dist.ReduceOp.MAX, group=pair)
    parts = torch.zeros(4)
    dist.all_gather_into_tensor(parts, torch.tensor([1.0, 2.0]), group=pair)
    dist.all_reduce(torch.empty(7, device="meta"), group=pair)
    message = torch.zeros(1, dtype=torch.int64)
    dist.recv(message, src=3, group=pair)
    calls = {group.name: [tuple(call) for call in calls.sequence] for group, calls in record.groups.items()}
    sender.send((gathered, votes.item(), parts.tolist(), message.item(), calls))


def test_calls_are_answered_and_recorded():
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("forkserver").Process(target=_answers, args=(sender,))
    process.start()
    sender.close()
    gathered, vote, parts, message, calls = receiver.recv()
    process.join()
    assert gathered == [{"rank": 1}] * 4
    assert (vote, parts, message) == (3, [1.0, 2.0] * 2, 3)
    assert calls["PAIR"] == [
        ("all_reduce", 8, None),
        ("all_gather", 16, None),
        ("all_reduce", 28, None),
        ("recv", 8, 3),
    ]
    assert [kind for kind, *_ in calls["WORLD"]] == ["all_gather", "all_gather of objects"]
