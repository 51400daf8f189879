"""Diagnosis of an update that is not finite: losses, gradients and weights, by rank and by name."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch

from megatron_prime.models.forward import RowLoss
from megatron_prime.parallel.collectives import all_gather_lists
from megatron_prime.parallel.topology import Topology

NAMES_SHOWN = 20
"""Number of names that a rank lists of each kind; the counts include all."""


class WatchedLoss:
    """A row loss that remembers whether all its values were finite. Call it like the loss itself."""

    def __init__(self, loss: RowLoss) -> None:
        self._loss = loss
        self._values: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __call__(
        self, rows_b: torch.Tensor, logprobs_bT: torch.Tensor, entropy_bT: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """See RowLoss."""
        value, metrics = self._loss(rows_b, logprobs_bT, entropy_bT)
        self._values.append((rows_b, value.detach()))
        return value, metrics

    @property
    def is_finite(self) -> bool:
        """True if the loss of every microbatch on this rank was finite. Waits for the device, once per update."""
        return not self._values or bool(torch.stack([value for _, value in self._values]).isfinite().all())

    def broken_rows(self) -> list[int]:
        """Return the batch rows of the microbatches whose loss was not finite."""
        return sorted(
            row for rows_b, value in self._values if not value.isfinite() for row in rows_b.tolist()
        )


@dataclass(frozen=True)
class Findings:
    """The findings of one rank."""

    rank: int
    loss_rows: list[int]
    """Rows of the batch in microbatches whose loss was not finite."""
    num_gradients: int
    """Number of parameters whose gradient is not finite."""
    gradients: list[str]
    num_parameters: int
    parameters: list[str]
    """Names of parameters that are not finite themselves, which the run was started or resumed with."""


@dataclass(frozen=True)
class SkippedUpdate:
    """An optimizer step that was not taken, and the reason; the same on every rank."""

    role: str
    grad_norm: float
    by_rank: list[Findings]

    def summary(self) -> str:
        """Return the reason in one line."""
        parts = []
        rows = sorted({row for found in self.by_rank for row in found.loss_rows})
        if rows:
            parts.append(f"the loss in microbatches with rows {_listed([str(row) for row in rows])}")
        for kind in ("gradients", "parameters"):
            names = sorted({name for found in self.by_rank for name in getattr(found, kind)})
            if names:
                ranks = [str(found.rank) for found in self.by_rank if getattr(found, f"num_{kind}")]
                parts.append(f"{kind} of {_listed(names)} (ranks {', '.join(ranks)})")
        return "; ".join(parts) or "the gradient's norm alone: its square overflows"

    def to_dict(self) -> dict[str, Any]:
        """Return the findings for a report; a norm that is not finite is text, because JSON has no NaN."""
        return {
            "role": self.role,
            "grad_norm": self.grad_norm if math.isfinite(self.grad_norm) else str(self.grad_norm),
            "by_rank": [asdict(found) for found in self.by_rank],
        }


def describe_skipped(
    role: str, module: torch.nn.Module, loss: WatchedLoss, grad_norm: float, topology: Topology
) -> SkippedUpdate:
    """Search this rank's part of the model and gather the findings of all ranks. Collective over all ranks."""
    gradients, parameters = [], []
    for name, parameter in module.named_parameters():
        gradient = getattr(parameter, "main_grad", None)
        if gradient is not None and not gradient.isfinite().all():
            gradients.append(name)
        if not parameter.isfinite().all():
            parameters.append(name)
    mine = Findings(
        rank=topology.rank,
        loss_rows=loss.broken_rows(),
        num_gradients=len(gradients),
        gradients=gradients[:NAMES_SHOWN],
        num_parameters=len(parameters),
        parameters=parameters[:NAMES_SHOWN],
    )
    return SkippedUpdate(role, grad_norm, [of_rank[0] for of_rank in all_gather_lists([mine], topology)])


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(names[:4]) + more
