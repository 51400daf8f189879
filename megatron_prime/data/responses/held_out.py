"""Reads groups of responses, and holds out those to some of the prompts."""

import hashlib
import math
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_prime.data.mixing import Subset
from megatron_prime.data.reading import Fingerprint
from megatron_prime.data.responses.logged import GroupReader
from megatron_prime.data.responses.table import Group, GroupTable


@dataclass(frozen=True)
class SavedGroups:
    """All groups of some files, and which of them are held out."""

    table: GroupTable
    train: Sequence[Group]
    held_out: Sequence[Group]
    """Groups of prompts none of whose responses are in `train`."""
    fingerprint: str
    """Hash of all groups and of the choice of those that are held out."""
    num_mixed: int
    """Number of groups in `train` whose responses have different outcomes."""
    mean_outcome: float
    """Mean outcome of the responses in `train`."""
    notes: tuple[str, ...] = ()
    """Log lines on the groups and on what was left out."""


def read_groups(
    files: Sequence[Path], reader: GroupReader, held_out_fraction: float = 0.0, seed: int = 0
) -> SavedGroups:
    """Read all groups, and hold out those of a share of the prompts, the same ones for one seed.

    A prompt that several steps have sampled is on one side with all its groups, since its responses resemble each
    other.

    Raises:
        ValueError: a file is damaged or of another model, or nothing is left to train on.
    """
    table, fingerprint = GroupTable(), Fingerprint()
    for path in files:
        for prompt_ids, responses in reader.groups(path):
            table.append(prompt_ids, responses)
            for each in responses:
                ends = [end for turn in each.turns for end in (turn.policy_end, turn.end)]
                fingerprint.add(list(prompt_ids), list(each.token_ids), str(each.outcome), ends)
    fingerprint.add(str(held_out_fraction), seed)
    keys = [_key(table.prompt_ids(row), seed) for row in range(len(table))]
    distinct = sorted(set(keys))
    held_out_keys = set(distinct[: math.ceil(held_out_fraction * len(distinct))])
    held_out = [row for row, key in enumerate(keys) if key in held_out_keys]
    train = [row for row, key in enumerate(keys) if key not in held_out_keys]
    lines = reader.log_lines()
    if not train:
        raise ValueError(
            f"no response is left to train on in {', '.join(map(str, files[:3]))} "
            f"({len(held_out)} groups are held out; {'; '.join(lines) or 'none was left out'})"
        )
    notes = (
        f"{table.num_responses} responses in {len(table)} groups, of {len(distinct)} prompts, {len(held_out_keys)} of "
        "them held out",
        *_label_notes(table, train, "trained on"),
        *_label_notes(table, held_out, "held out"),
        *lines,
    )
    return SavedGroups(
        table,
        Subset(table, train),
        Subset(table, held_out),
        fingerprint.hexdigest(),
        num_mixed=sum(_is_mixed(table.outcomes(row)) for row in train),
        mean_outcome=_mean_outcome([table.outcomes(row) for row in train]),
        notes=notes,
    )


def _key(prompt_ids: Sequence[int], seed: int) -> bytes:
    """Return a hash of a prompt, whose order is a draw by the seed."""
    return hashlib.sha256(array("q", [seed, *prompt_ids]).tobytes()).digest()


def _is_mixed(outcomes: Sequence[float]) -> bool:
    return min(outcomes) < max(outcomes)


def _mean_outcome(groups: Sequence[Sequence[float]]) -> float:
    return math.fsum(value for group in groups for value in group) / sum(map(len, groups))


def _label_notes(table: GroupTable, rows: Sequence[int], what: str) -> Iterator[str]:
    if not rows:
        return
    outcomes = [table.outcomes(row) for row in rows]
    num_responses, mean = sum(map(len, outcomes)), _mean_outcome(outcomes)
    mixed = sum(map(_is_mixed, outcomes))
    yield (
        f"{what}: {num_responses} responses with a mean outcome of {mean:.3f}; {mixed} of {len(rows)} groups have "
        "different ones"
    )
