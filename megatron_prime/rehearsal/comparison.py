"""Ranks that do not call the same collectives: on real devices they would wait for each other forever."""

from collections.abc import Sequence
from itertools import combinations, zip_longest

from megatron_prime.rehearsal.collectives import Collective, Group
from megatron_prime.rehearsal.rank import RankReport


def differences(reports: Sequence[RankReport]) -> list[str]:
    """Return a line for each group whose rehearsed ranks differ, and for each link whose ends do.

    All collectives of a group must have the same kinds and sizes in the same order on all its ranks, except for the
    sizes of all-to-alls, which depend on the experts that a rank's tokens choose. What one rank sends to another, the
    other must receive. Ranks that ended with an error are left out.
    """
    found: list[str] = []
    whole = [report for report in reports if not report.error]
    for one, other in combinations(whole, 2):
        for group in one.collectives.groups:
            if one.rank not in group.ranks or other.rank not in group.ranks:
                continue
            first, second = _calls(one, group), _calls(other, group)
            found += _first_difference(
                group.name,
                (one.rank, _comparable(first)),
                (other.rank, _comparable(second)),
            )
            for sender, receiver in ((one, other), (other, one)):
                sent = [call for call in _calls(sender, group) if call[0::2] == ("send", receiver.rank)]
                received = [call for call in _calls(receiver, group) if call[0::2] == ("recv", sender.rank)]
                found += _first_difference(
                    f"{group.name}, messages from rank {sender.rank} to rank {receiver.rank}",
                    (sender.rank, [Collective("message", call.num_bytes) for call in sent]),
                    (receiver.rank, [Collective("message", call.num_bytes) for call in received]),
                )
    return found


def _calls(report: RankReport, group: Group) -> list[Collective]:
    calls = report.collectives.groups.get(group)
    return [] if calls is None else calls.sequence


def _comparable(calls: Sequence[Collective]) -> list[Collective]:
    """Return what must be equal on all ranks of a group."""
    return [
        call._replace(num_bytes=0) if call.kind == "all_to_all" else call
        for call in calls
        if not call.is_message
    ]


def _first_difference(
    name: str, one: tuple[int, list[Collective]], other: tuple[int, list[Collective]]
) -> list[str]:
    for number, (mine, theirs) in enumerate(zip_longest(one[1], other[1]), 1):
        if mine != theirs:
            return [
                f"{name}: call {number} is {_text(mine)} on rank {one[0]} and {_text(theirs)} on rank {other[0]}"
            ]
    return []


def _text(call: Collective | None) -> str:
    if call is None:
        return "missing"
    return f"{call.kind} of {call.num_bytes:,} bytes" + (
        f" from rank {call.peer}" if call.peer is not None else ""
    )
