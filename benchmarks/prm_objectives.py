"""Measure how well each PRM objective finds wrong steps, with a policy that does not change.

    python -m benchmarks.prm_objectives [--steps 16] [--seeds 8] [--objectives NAME ...]

Takes about 15 seconds of a core. A prompt is a chain of facts out of 100. The policy knows 70 of them; in each of the
others it is right half of the time. A response is right if all its facts are, or by chance in one of ten. Nobody says
which were: a PRM gets 8 batches of 64 prompts with 4 responses and their outcomes. It is a table of one number a fact,
how much likelier the right value is than under the reference, so that neither features nor capacity decide.

Printed is the area under the curve by which the credit of an uncertain step tells right from wrong on a batch that the
PRM has not seen: by the step's own log-ratio, and by the change of the value of the prefix (`process_credit = "td"`).
"""

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_prime.algorithm.groups import prior_logits_B, share_positive
from megatron_prime.algorithm.prm_loss import PRMObjective, prm_loss, prm_targets
from megatron_prime.algorithm.prm_rows import ScoredRows
from megatron_prime.algorithm.registry import PRM_OBJECTIVES
from megatron_prime.config.tables.prm import PRMConfig

NUM_FACTS, SHARE_UNCERTAIN, SHARE_LUCKY = 100, 0.3, 0.1
NUM_PROMPTS, GROUP_SIZE = 64, 4
NUM_ROWS = NUM_PROMPTS * GROUP_SIZE
NUM_BATCHES, NUM_EPOCHS, NUM_MINIBATCHES, LR = 8, 2, 2, 0.1
BETAS = {"ipvrm": 10.0}
"""Objectives whose value is a mean need another scale; the others have 1."""
IDS_B = torch.arange(NUM_ROWS) // GROUP_SIZE


@dataclass(frozen=True, eq=False)
class Responses:
    """The responses of one batch."""

    facts_BT: Tensor
    """The fact of each step."""
    right_BT: Tensor
    """bool; whether the step is right."""
    outcomes_B: Tensor


class Chain:
    """The task, its policy and a PRM."""

    def __init__(self, num_steps: int, config: PRMConfig, seed: int) -> None:
        self.random = torch.Generator().manual_seed(seed)
        self.num_steps, self.config = num_steps, config
        self.is_uncertain_F = torch.rand(NUM_FACTS, generator=self.random) < SHARE_UNCERTAIN
        self.chances_F = torch.where(self.is_uncertain_F, 0.5, 0.999)
        self.table_F = torch.zeros(NUM_FACTS, requires_grad=True)

    def sample(self) -> Responses:
        """Sample a batch from the policy."""
        facts_BT = torch.randint(0, NUM_FACTS, (NUM_PROMPTS, self.num_steps), generator=self.random)
        facts_BT = facts_BT.repeat_interleave(GROUP_SIZE, dim=0)
        right_BT = torch.rand(facts_BT.shape, generator=self.random) < self.chances_F[facts_BT]
        is_lucky_B = torch.rand(NUM_ROWS, generator=self.random) < SHARE_LUCKY
        return Responses(facts_BT, right_BT, (right_BT.all(dim=1) | is_lucky_B).float())

    def rows(self, batch: Responses, rows_b: Tensor | slice = slice(None)) -> ScoredRows:
        """Return what an objective sees; each step is one token and one unit."""
        ref_F2 = torch.stack([1 - self.chances_F, self.chances_F], dim=1).log()
        shifts_F2 = torch.stack([torch.zeros_like(self.table_F), self.table_F], dim=1)
        q_F2 = (ref_F2 + shifts_F2).log_softmax(dim=1) - ref_F2
        q_bT = q_F2[batch.facts_BT[rows_b], batch.right_BT[rows_b].long()]
        units_bT = torch.arange(self.num_steps).expand(q_bT.shape)
        return ScoredRows(q_bT, torch.ones_like(q_bT).bool(), self.config.beta, units_bT)

    def learn(self, batch: Responses, optimizer: torch.optim.Optimizer) -> None:
        """Update the PRM on a batch."""
        targets = prm_targets(self.rows(batch), batch.outcomes_B, IDS_B, self.config)
        for _ in range(NUM_EPOCHS):
            for rows_b in torch.randperm(NUM_ROWS, generator=self.random).chunk(NUM_MINIBATCHES):
                loss = prm_loss(
                    self.rows(batch, rows_b),
                    batch.outcomes_B[rows_b],
                    torch.full((len(rows_b),), 1 / len(rows_b)),
                    self.config,
                    None if targets is None else targets.rows(rows_b),
                )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

    @torch.no_grad()
    def aucs(self) -> tuple[float, float]:
        """Return the areas of the log-ratio and of the value's changes on the uncertain steps of a new batch."""
        batch = self.sample()
        rows, priors_B = self.rows(batch), prior_logits_B(batch.outcomes_B, IDS_B)
        objective: PRMObjective = PRM_OBJECTIVES.load(self.config.loss)(self.config)
        values_BL = objective.prefix_logits_BL(rows.log_ratio_BT, rows.scored_mask_BT, priors_B).sigmoid()
        is_uncertain_BT = self.is_uncertain_F[batch.facts_BT]
        is_right = batch.right_BT[is_uncertain_BT]
        own, change = (
            share_positive(credit[is_right][:, None] - credit[~is_right]).item()
            for credit in (rows.log_ratio_BT[is_uncertain_BT], values_BL.diff(dim=1)[is_uncertain_BT])
        )
        return own, change


def run(objective: str, num_steps: int, seed: int) -> list[tuple[float, float]]:
    """Return the areas after each batch."""
    chain = Chain(num_steps, PRMConfig(loss=objective, beta=BETAS.get(objective, 1.0)), seed)
    optimizer = torch.optim.Adam([chain.table_F], lr=LR)
    curve = []
    for _ in range(NUM_BATCHES):
        chain.learn(chain.sample(), optimizer)
        curve.append(chain.aucs())
    return curve


def table(objectives: Sequence[str], num_steps: int, seeds: Sequence[int]) -> list[str]:
    """Return the lines of a Markdown table: means over seeds, and the spread of the last column."""
    shown = [0, 1, 3, NUM_BATCHES - 1]
    lines = [
        "| objective | beta | "
        + " | ".join(f"after {place + 1}" for place in shown)
        + " | changes of the value |"
    ]
    lines.append("|---" * (len(shown) + 3) + "|")
    for objective in objectives:
        curves = [run(objective, num_steps, seed) for seed in seeds]
        cells = [f"`{objective}`", f"{BETAS.get(objective, 1.0):g}"]
        for place in shown:
            values = [curve[place][0] for curve in curves]
            spread = f" ± {statistics.stdev(values):.2f}" if place == shown[-1] and len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.2f}{spread}")
        cells.append(f"{statistics.mean(curve[-1][1] for curve in curves):.2f}")
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    """Print the table of the objectives."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--objectives", nargs="+", default=PRM_OBJECTIVES.names())
    options = parser.parse_args()
    print("\n".join(table(options.objectives, options.steps, range(options.seeds))))


if __name__ == "__main__":
    main()
