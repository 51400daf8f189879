"""A batch that was sampled ahead of the step that trains on it, and its files in a checkpoint.

    held_batch.json          what was counted, texts, and where tokens begin and end
    held_batch.safetensors   tokens, log-probs and the tensors of the batch

Numbers keep all their bits, so that a resumed run trains on the same batch. Neither file can hold code (ADR 0034).
"""

import json
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from megatron_prime.rollout.collector import NoBatch
from megatron_prime.rollout.prompt_history import PromptRecord
from megatron_prime.rollout.sampled_groups import SampledGroup
from megatron_prime.types import FinishReason, Prompt, Rollout, RolloutBatch, Turn

TEXT, TENSORS = "held_batch.json", "held_batch.safetensors"
FORMAT = 1
"""Raise it when older files cannot be read any more."""
_IN_TENSORS = ("prompt", "response_ids", "rollout_logprobs", "routed_experts")
"""The fields of a rollout that are not in its JSON object."""


class Resumable(Protocol):
    """An object whose state a checkpoint holds."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state, as JSON can hold it."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        ...


@dataclass(frozen=True)
class HeldBatch:
    """The batch of a step, with all that a collector leaves behind for it."""

    step_index: int
    """The step that trains on it."""
    result: RolloutBatch | NoBatch
    records: Sequence[PromptRecord]
    """All groups sampled for it, for the prompt history."""
    groups: Sequence[SampledGroup]
    """The same groups with their responses, for the rollout log."""
    prompts_before: dict[str, Any]
    """State of the prompt stream before it was collected."""
    collector_before: dict[str, Any]
    """State of the collector before it was collected."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The settings that it was collected with, as JSON values."""

    def give_back(self, prompts: Resumable, collector: Resumable) -> None:
        """Undo the collection: its prompts are taken again."""
        prompts.load_state_dict(self.prompts_before)
        collector.load_state_dict(self.collector_before)


def write_held(folder: Path, held: HeldBatch) -> None:
    """Write the files of a batch to the folder of a checkpoint."""
    batch, groups = held.result, held.groups
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    tensors = {
        "response_ids": _joined([each.response_ids for each in rollouts], np.int32),
        "rollout_logprobs": _joined([each.rollout_logprobs for each in rollouts], np.float32),
    }
    for row, each in enumerate(rollouts):
        if each.routed_experts is not None:
            tensors[f"routed_experts.{row}"] = each.routed_experts.contiguous()
    names: dict[str, str] = {}
    if isinstance(batch, RolloutBatch):
        assert _in_batch(groups) == list(batch.rollouts), "a batch consists of its groups, in their order"
        names = _name_tensors(batch, tensors)
    text = {
        "format": FORMAT,
        "step_index": held.step_index,
        "settings": held.settings,
        "prompts_before": held.prompts_before,
        "collector_before": held.collector_before,
        "records": held.records,
        "stats": batch.stats,
        "throughput": batch.throughput,
        "reason": batch.reason if isinstance(batch, NoBatch) else None,
        "tensors": names,
        "groups": [_group_to_json(group) for group in groups],
    }
    # The library's own writer reports a full disk as an error of its own kind.
    (folder / TENSORS).write_bytes(save(tensors))
    (folder / TEXT).write_text(json.dumps(text), encoding="utf-8")


def read_held(folder: Path) -> HeldBatch | None:
    """Return the batch that a checkpoint holds; None if it holds none.

    Raises:
        ValueError: its files are damaged, or of another format.
    """
    if not (folder / TEXT).is_file():
        return None
    try:
        text = json.loads((folder / TEXT).read_text(encoding="utf-8"))
        if text["format"] != FORMAT:
            raise ValueError(f"it has format {text['format']}, and this version reads {FORMAT}")
        return _held_of(text, load((folder / TENSORS).read_bytes()))
    except (OSError, KeyError, TypeError, ValueError, AssertionError, SafetensorError) as error:
        raise ValueError(f"{folder / TEXT} cannot be read ({type(error).__name__}: {error})") from error


def _joined(parts: Sequence[Sequence[float]], dtype: type) -> torch.Tensor:
    return torch.from_numpy(
        np.concatenate([np.empty(0, dtype), *(np.asarray(part, dtype) for part in parts)])
    )


def _held_of(text: dict[str, Any], tensors: Mapping[str, torch.Tensor]) -> HeldBatch:
    tokens, logprobs = tensors["response_ids"].int().numpy(), tensors["rollout_logprobs"].float().numpy()
    groups, row, start = [], 0, 0
    for of_group in text["groups"]:
        prompt = Prompt(**of_group.pop("prompt") | {"token_ids": tuple(of_group.pop("prompt_token_ids"))})
        rollouts = []
        for of_rollout in of_group.pop("rollouts"):
            end = start + of_rollout.pop("num_tokens")
            rollouts.append(
                Rollout(
                    prompt=prompt,
                    response_ids=array("i", tokens[start:end].tobytes()),
                    rollout_logprobs=array("f", logprobs[start:end].tobytes()),
                    routed_experts=tensors.get(f"routed_experts.{row}"),
                    **_values_of(of_rollout),
                )
            )
            row, start = row + 1, end
        groups.append(SampledGroup(rollouts, **of_group))
    result: RolloutBatch | NoBatch
    if text["reason"] is not None:
        result = NoBatch(text["stats"], text["reason"], text["throughput"])
    else:
        of_batch = {name: tensors[stored] for name, stored in text["tensors"].items()}
        result = RolloutBatch(
            tuple(_in_batch(groups)), stats=text["stats"], throughput=text["throughput"], **of_batch
        )
    records = [(index, accuracy, decision) for index, accuracy, decision in text["records"]]
    before = text["prompts_before"], text["collector_before"]
    return HeldBatch(text["step_index"], result, records, groups, *before, text["settings"])


def _in_batch(groups: Sequence[SampledGroup]) -> list[Rollout]:
    chosen = [group for group in groups if group.batch_index is not None]
    return [rollout for group in sorted(chosen, key=_place_in_batch) for rollout in group.rollouts]


def _place_in_batch(group: SampledGroup) -> int:
    assert group.batch_index is not None
    return group.batch_index


def _name_tensors(batch: RolloutBatch, tensors: dict[str, torch.Tensor]) -> dict[str, str]:
    """Add the batch's tensors to those to write; return the name there of each field.

    Fields may share a tensor, and still do so when the batch is read.
    """
    first: dict[int, str] = {}
    names = {}
    for each in fields(batch):
        value = getattr(batch, each.name)
        if isinstance(value, torch.Tensor):
            names[each.name] = first.setdefault(id(value), f"batch.{each.name}")
            tensors[names[each.name]] = value.contiguous()
    return names


def _group_to_json(group: SampledGroup) -> dict[str, Any]:
    own = {each.name: getattr(group, each.name) for each in fields(group) if each.name != "rollouts"}
    prompt = asdict(group.rollouts[0].prompt)
    rollouts = [
        {each.name: getattr(rollout, each.name) for each in fields(rollout) if each.name not in _IN_TENSORS}
        | {"turns": [asdict(turn) for turn in rollout.turns], "num_tokens": len(rollout.response_ids)}
        for rollout in group.rollouts
    ]
    return own | {"prompt_token_ids": prompt.pop("token_ids"), "prompt": prompt, "rollouts": rollouts}


def _values_of(of_rollout: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a rollout's fields from its JSON object."""
    return of_rollout | {
        "finish_reason": FinishReason(of_rollout["finish_reason"]),
        "version_spans": tuple(tuple(span) for span in of_rollout["version_spans"]),
        "turns": tuple(Turn(**turn) for turn in of_rollout["turns"]),
    }
