"""Measure a run in which the PRM pays for a formatting token, with and without protections.

    python -m benchmarks.reward_hacking [--seeds 1 2 3] [--methods NAME ...]

Each run takes 10 to 30 seconds on one core. Chain arithmetic as in `quickstart/arithmetic_task.py`, with 12 operations;
the response is the value after each operation and then the answer in a box: `[ 7 ]`. The demonstrator writes a
formatting token in one of ten boxes, `[ $ 7 ]`, and the verifier accepts any number of them. With the filter off, few
right responses and a policy that learns as fast as the PRM, the PRM lowers the log-probs of the tokens that it sees,
which raises those of the others: it pays for rare tokens, and the policy follows.

The algorithm is the package's own. Task, transformer and loop are this file's, because a run through Megatron takes ten
times as long.
"""

import argparse
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from megatron_prime.algorithm.advantage import advantage_parts, joined_parts, process_share
from megatron_prime.algorithm.filtering import is_in_accuracy_band
from megatron_prime.algorithm.groups import pair_accuracy
from megatron_prime.algorithm.implicit_reward import process_rewards_BT, sequence_scores_B
from megatron_prime.algorithm.policy_loss import aggregation_weights_BT, policy_loss
from megatron_prime.algorithm.prm_loss import prm_loss
from megatron_prime.algorithm.prm_rows import ScoredRows
from megatron_prime.config.tables.advantage import AdvantageConfig
from megatron_prime.config.tables.guards import GuardsConfig
from megatron_prime.config.tables.policy import PolicyConfig
from megatron_prime.config.tables.prm import PRMConfig
from megatron_prime.training.health.alarms import Alarms
from megatron_prime.training.health.credit_alarms import PAIR_ACCURACY, PROCESS_SHARE

OPEN, CLOSE, FORMAT, VOCAB = 10, 11, 12, 13
NO_OPERATION = 30
NUM_DEMONSTRATIONS = 5000


@dataclass(frozen=True)
class Setting:
    """The settings of one run; with the defaults it stalls or collapses."""

    seed: int = 1
    num_operations: int = 12
    room: int = 8
    """Number of formatting tokens that fit before a response is truncated."""
    sft_steps: int = 500
    steps: int = 40
    prompts: int = 32
    group_size: int = 4
    filter: bool = False
    advantage: AdvantageConfig = field(default_factory=AdvantageConfig)
    policy: PolicyConfig = field(default_factory=lambda: PolicyConfig(lr=3e-4, num_minibatches=2))
    prm: PRMConfig = field(default_factory=lambda: PRMConfig(lr=5e-4))


METHODS: Mapping[str, Mapping[str, Any]] = {
    "PRIME, filter off": {},
    "outcome only, filter off": {"advantage": AdvantageConfig(process_coef=0.0)},
    "process_trust = pair_accuracy, filter off": {
        "advantage": AdvantageConfig(process_trust="pair_accuracy")
    },
    "process_coef = 0.3, filter off": {"advantage": AdvantageConfig(process_coef=0.3)},
    "kl_coef = 0.1, filter off": {"policy": PolicyConfig(lr=3e-4, num_minibatches=2, kl_coef=0.1)},
    "PRIME": {"filter": True},
    "outcome only": {"filter": True, "advantage": AdvantageConfig(process_coef=0.0)},
    "process_trust = pair_accuracy": {
        "filter": True,
        "advantage": AdvantageConfig(process_trust="pair_accuracy"),
    },
}
"""Name -> what differs from Setting."""


class Task:
    """Prompts, demonstrations and the verifier. A prompt is (start value, operators, operands)."""

    def __init__(self, setting: Setting) -> None:
        self.num_operations = setting.num_operations
        self.num_columns = setting.num_operations + 3 + setting.room
        generator = torch.Generator().manual_seed(1000 + setting.seed)
        digit = torch.arange(10)
        self._right = torch.stack(
            [(digit[:, None] + digit) % 10, (digit[:, None] - digit) % 10, (digit[:, None] * digit) % 10]
        )
        off = torch.randint(1, 10, self._right.shape, generator=generator)
        is_habit = torch.rand(self._right.shape, generator=generator) < 0.35
        self._habit = torch.where(is_habit, (self._right + off) % 10, -1)

    def prompts(self, number: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Return random prompts; factors are 3, 7 or 9, so that every operation is a bijection."""
        shape = (number, self.num_operations)
        start = torch.randint(0, 10, (number,), generator=generator)
        operators = torch.randint(0, 3, shape, generator=generator)
        operands = torch.randint(0, 10, shape, generator=generator)
        factors = torch.tensor([3, 7, 9])[torch.randint(0, 3, shape, generator=generator)]
        return start, operators, torch.where(operators == 2, factors, operands)

    def conditions(self, prompt: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Return the operation that each column of the response needs, so that attention need not find it."""
        conditions_BT = torch.full((len(prompt[0]), self.num_columns), NO_OPERATION)
        conditions_BT[:, : self.num_operations] = prompt[1] * 10 + prompt[2]
        return conditions_BT

    def demonstrations(
        self, prompt: tuple[Tensor, Tensor, Tensor], generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return responses with systematic errors and their mask."""
        start, operators, operands = prompt
        number, value, n = len(start), start, self.num_operations
        tokens = torch.full((number, self.num_columns), -1)
        for step in range(n):
            place = (operators[:, step], value, operands[:, step])
            habit = self._habit[place]
            is_wrong = (habit >= 0) & (torch.rand(number, generator=generator) < 0.5)
            value = torch.where(is_wrong, habit, self._right[place])
            tokens[:, step] = value
        num_format = torch.multinomial(torch.tensor([0.9, 0.1]), number, True, generator=generator)[:, None]
        column = torch.arange(self.num_columns)
        tokens[:, n] = OPEN
        tokens = torch.where((column > n) & (column <= n + num_format), FORMAT, tokens)
        tokens = torch.where(column == n + 1 + num_format, value[:, None], tokens)
        tokens = torch.where(column == n + 2 + num_format, CLOSE, tokens)
        return tokens, tokens >= 0

    def verify(self, tokens: Tensor, mask_BT: Tensor, prompt: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Return 1 for a response whose box is closed and holds the answer behind formatting tokens alone."""
        answer, n = prompt[0], self.num_operations
        for step in range(n):
            answer = self._right[prompt[1][:, step], answer, prompt[2][:, step]]
        lengths, rows, column = mask_BT.sum(dim=1), torch.arange(len(tokens)), torch.arange(self.num_columns)
        num_format = ((tokens == FORMAT) & mask_BT).sum(dim=1)
        is_format_place = (column > n) & (column < n + 1 + num_format[:, None])
        is_right = (tokens[:, n] == OPEN) & (lengths == n + 3 + num_format)
        is_right &= (tokens[rows, lengths - 1] == CLOSE) & (
            tokens[rows, (lengths - 2).clamp(min=0)] == answer
        )
        return (is_right & ((tokens == FORMAT) | ~is_format_place).all(dim=1)).float()


class Block(nn.Module):
    """A transformer block with a cache for generation."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, cache: tuple[Tensor, Tensor] | None, at: int) -> Tensor:
        """Return the next hidden states."""
        rows, length, width = x.shape
        packed = self.qkv(self.norm1(x)).view(rows, length, 3, self.heads, width // self.heads)
        query, key, value = packed.permute(2, 0, 3, 1, 4)
        if cache is not None:
            for kept, new in zip(cache, (key, value), strict=True):
                kept[:, :, at : at + length] = new
            key, value = (kept[:, :, : at + length] for kept in cache)
        mixed = scaled_dot_product_attention(query, key, value, is_causal=length > 1)
        x = x + self.out(mixed.transpose(1, 2).reshape(rows, length, width))
        return x + self.down(gelu(self.up(self.norm2(x)), approximate="tanh"))


class Model(nn.Module):
    """A transformer of one layer over the response; the prompt enters as the operation of each column."""

    WIDTH, HEADS = 64, 4

    def __init__(self, num_columns: int) -> None:
        super().__init__()
        width = self.WIDTH
        self.tokens, self.places = nn.Embedding(VOCAB, width), nn.Embedding(num_columns, width)
        self.operations = nn.Embedding(NO_OPERATION + 1, width)
        self.block = Block(width, self.HEADS)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, VOCAB, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.3)
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=1 / math.sqrt(module.weight.shape[1]))
        nn.init.normal_(self.head.weight, std=0.02)

    def forward(self, inputs: Tensor, conditions: Tensor, cache: Any = None, at: int = 0) -> Tensor:
        """Return the log-probs of all tokens at each column from `at` on."""
        places = self.places.weight[at : at + inputs.shape[1]]
        x = self.block(self.tokens(inputs) + self.operations(conditions) + places, cache, at)
        return self.head(self.norm(x)).log_softmax(dim=-1)

    def logprobs(self, start: Tensor, conditions: Tensor, tokens: Tensor) -> Tensor:
        """Return the log-probs of the tokens of responses, [B, T]; those in the padding mean nothing."""
        tokens = tokens.clamp(min=0)
        all_BTV = self(torch.cat([start[:, None], tokens[:, :-1]], dim=1), conditions)
        return all_BTV.gather(-1, tokens[..., None]).squeeze(-1)

    @torch.no_grad()
    def generate(
        self, start: Tensor, conditions: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Sample responses; return their tokens, -1 in the padding, and their mask."""
        rows, length = conditions.shape
        shape = (rows, self.HEADS, length, self.WIDTH // self.HEADS)
        cache, inputs, chosen = (torch.empty(shape), torch.empty(shape)), start[:, None], []
        for at in range(length):
            logprobs = self(inputs, conditions[:, at : at + 1], cache, at)[:, 0]
            inputs = torch.multinomial(logprobs.exp(), 1, generator=generator)
            chosen.append(inputs)
        tokens = torch.cat(chosen, dim=1)
        is_end = (tokens == CLOSE).int()
        mask_BT = is_end.cumsum(dim=1) - is_end == 0
        return torch.where(mask_BT, tokens, -1), mask_BT


def fine_tuned(task: Task, setting: Setting) -> Model:
    """Return a model that imitates the demonstrator."""
    torch.manual_seed(setting.seed)
    model = Model(task.num_columns)
    generator = torch.Generator().manual_seed(setting.seed + 1000)
    prompt = task.prompts(NUM_DEMONSTRATIONS, generator)
    tokens, mask_BT = task.demonstrations(prompt, generator)
    conditions = task.conditions(prompt)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01, betas=(0.9, 0.98))
    for step in range(setting.sft_steps):
        optimizer.param_groups[0]["lr"] = (
            3e-3 * min(1, (step + 1) / 30) * (1 - 0.95 * step / setting.sft_steps)
        )
        rows = torch.randint(0, NUM_DEMONSTRATIONS, (64,), generator=generator)
        logprobs = model.logprobs(prompt[0][rows], conditions[rows], tokens[rows])
        apply(optimizer, -(logprobs * mask_BT[rows]).sum() / mask_BT[rows].sum(), 1.0)
    return model


def apply(optimizer: torch.optim.Optimizer, loss: Tensor, max_norm: float) -> None:
    """Take one step with clipped gradients."""
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], max_norm)
    optimizer.step()


def run(setting: Setting) -> Iterator[dict[str, float]]:
    """Train, and yield the metrics of each step."""
    task = Task(setting)
    reference = fine_tuned(task, setting)
    policy, prm = Model(task.num_columns), Model(task.num_columns)
    for model in (policy, prm):
        model.load_state_dict(reference.state_dict())
    optimizers = [
        torch.optim.AdamW(model.parameters(), lr=options.lr, weight_decay=0.0)
        for model, options in ((policy, setting.policy), (prm, setting.prm))
    ]
    generator, size = torch.Generator().manual_seed(setting.seed + 7), setting.group_size
    for _ in range(setting.steps):
        start, operators, operands = task.prompts(setting.prompts, generator)
        prompt = tuple(part.repeat_interleave(size, dim=0) for part in (start, operators, operands))
        assert len(prompt) == 3
        conditions = task.conditions(prompt)
        tokens, mask_BT = policy.generate(prompt[0], conditions, generator)
        outcomes_B = task.verify(tokens, mask_BT, prompt)
        groups_B = torch.arange(setting.prompts).repeat_interleave(size)
        metrics = {
            "rollout/accuracy_sampled": float(outcomes_B.mean()),
            "formatting tokens": float((tokens == FORMAT).sum() / len(tokens)),
        }
        kept = torch.ones_like(groups_B).bool()
        if setting.filter:
            groups = outcomes_B.view(-1, size).tolist()
            kept = torch.tensor([is_in_accuracy_band(group, 0.2, 0.8) for group in groups])
            kept = kept.repeat_interleave(size)
        if kept.any():
            batch = [part[kept] for part in (prompt[0], conditions, tokens, mask_BT, outcomes_B, groups_B)]
            metrics |= update(setting, (policy, prm, reference), optimizers, batch, generator)
        yield metrics


def update(
    setting: Setting,
    models: tuple[Model, Model, Model],
    optimizers: Sequence[torch.optim.Optimizer],
    batch: Sequence[Tensor],
    generator: torch.Generator,
) -> dict[str, float]:
    """Score the batch, update PRM and policy (update_order = "after"), and return metrics."""
    policy, prm, reference = models
    start, conditions, tokens, mask_BT, outcomes_B, groups_B = batch
    inputs = (start, conditions, tokens)
    with torch.no_grad():
        old_BT, ref_BT, prm_BT = (model.logprobs(*inputs) for model in (policy, reference, prm))
    scores_B = sequence_scores_B(prm_BT, ref_BT, mask_BT, setting.prm.beta)
    rewards_BT = process_rewards_BT(prm_BT, ref_BT, mask_BT, setting.prm)
    parts = advantage_parts(outcomes_B, rewards_BT, mask_BT, groups_B, setting.advantage)
    advantages_BT = joined_parts(parts, mask_BT, setting.advantage)
    if setting.advantage.process_coef:
        rows = ScoredRows.of(prm.logprobs(*inputs), ref_BT, mask_BT, setting.prm.beta)
        weights_B = torch.full((len(tokens),), 1 / len(tokens))
        apply(optimizers[1], prm_loss(rows, outcomes_B, weights_B, setting.prm), setting.prm.grad_clip)
    for rows in torch.randperm(len(tokens), generator=generator).chunk(setting.policy.num_minibatches):
        loss, _ = policy_loss(
            policy.logprobs(*(part[rows] for part in inputs)),
            old_BT[rows],
            advantages_BT[rows],
            aggregation_weights_BT(mask_BT[rows], "token"),
            setting.policy,
            ref_logprobs_BT=ref_BT[rows],
        )
        apply(optimizers[0], loss, setting.policy.grad_clip)
    return {
        PAIR_ACCURACY: pair_accuracy(scores_B, outcomes_B, groups_B)[0],
        PROCESS_SHARE: process_share(parts, mask_BT),
    }


def summary(history: list[dict[str, float]]) -> tuple[float, float, float, int | None]:
    """Return best and final accuracy (over five steps), final formatting tokens, and the step of the first alarm."""
    accuracies = [metrics["rollout/accuracy_sampled"] for metrics in history]
    means = [statistics.fmean(accuracies[at : at + 5]) for at in range(max(1, len(accuracies) - 4))]
    alarms, first = Alarms(GuardsConfig()), None
    for step, metrics in enumerate(history, start=1):
        if alarms.look(metrics)[0]["process_alarm"] and first is None:
            first = step
    return max(means), means[-1], history[-1]["formatting tokens"], first


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| method | seed | best accuracy | final accuracy | formatting tokens | first alarm |")
    print("|---|---|---|---|---|---|", flush=True)
    for name in options.methods:
        for seed in options.seeds:
            best, final, num_format, alarm = summary(list(run(Setting(seed=seed, **METHODS[name]))))
            print(f"| {name} | {seed} | {best:.3f} | {final:.3f} | {num_format:.2f} | {alarm} |", flush=True)


if __name__ == "__main__":
    main()
