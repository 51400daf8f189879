"""Responses with replies of an environment, and the equations of rewards and advantages on them as float64 loops.

Written from the docstrings of the package: a reply belongs to the unit before it, returns count every token, and only
the policy's tokens have an advantage.
"""

import math
import random

import torch

from tests.algorithm import oracle
from tests.algorithm.oracle import Batch

SCORED = ("all", "policy", "environment")
"""The values of prm.scored_tokens."""


class Dialogues(Batch):
    """A batch whose responses alternate between tokens of the policy and of an environment."""

    def __init__(self, seed, sizes=(2, 5, 3), max_turns=3, has_replies=True, **options):
        super().__init__(seed, sizes, **options)
        rng = random.Random(seed + 1)
        self.writers = []
        """Whether the policy wrote each token."""
        self.turns, self.steps = [], []
        """The turn and step of each token; ids of a reply are those of the tokens before it."""
        for _ in self.ids:
            writers, turns, steps, step = [], [], [], 0
            for turn in range(rng.randint(1, max_turns)):
                lengths = rng.randint(1, 4), rng.randint(0, 3) if has_replies else 0
                writers += [True] * lengths[0] + [False] * lengths[1]
                turns += [2 * turn] * sum(lengths)
                step += 1
                for _ in range(lengths[0]):
                    step += rng.random() < 0.4
                    steps.append(step)
                steps += [step] * lengths[1]
            self.writers.append(writers)
            self.turns.append(turns)
            self.steps.append(steps)
        self.lengths = [len(row) for row in self.writers]
        self.rewards = [[rng.gauss(0, 1) for _ in range(n)] for n in self.lengths]
        self.turn_rewards = [
            [rng.gauss(0, 1) if last else 0.0 for last in self.positions(i, "turn", True)]
            for i in range(len(self.ids))
        ]
        self.num_columns = max(self.lengths) + options.get("extra_padding", 0)

    @property
    def policy_mask_BT(self):
        return self.padded(self.writers, padding=0.0).bool()

    def unit_ids(self, granularity):
        return {"turn": self.turns, "step": self.steps}.get(granularity)

    def unit_ids_BT(self, granularity):
        ids = self.unit_ids(granularity)
        return None if ids is None else self.padded(ids, padding=-5).long()

    def positions(self, i, granularity, scored_tokens, credit="own"):
        """Whether each token of response i carries a process reward."""
        writers = self.writers[i]
        if granularity == "token":
            return [
                (is_scored(is_policy, scored_tokens) and not (is_policy and credit == "observation"))
                or (is_policy and credit == "hindsight")
                for is_policy in writers
            ]
        ids = [0] * len(writers) if granularity == "whole" else self.unit_ids(granularity)[i]
        last = {ids[t]: t for t, is_policy in enumerate(writers) if is_policy}
        return [t in last.values() for t in range(len(writers))]

    def process_rewards(self, i, token_rewards, granularity, scored_tokens, credit):
        """The rewards of `credited_rewards` for response i, but for the weights of credit `min`."""
        scored = [
            r if is_scored(is_policy, scored_tokens) and not (is_policy and credit == "observation") else 0.0
            for r, is_policy in zip(token_rewards, self.writers[i], strict=True)
        ]
        marks = self.positions(i, granularity, scored_tokens, credit)
        marked = [t for t, is_one in enumerate(marks) if is_one]
        result = [0.0] * len(scored)
        for number, t in enumerate(marked):
            if credit == "hindsight":
                following = marked[number + 1] if t != marked[-1] else len(scored) - 1
                result[t] = sum(scored[t + 1 : following + 1])
            elif granularity == "token":
                result[t] = scored[t]
            else:
                ids = [0] * len(scored) if granularity == "whole" else self.unit_ids(granularity)[i]
                result[t] = sum(r for r, unit in zip(scored, ids, strict=True) if unit == ids[t])
        return result


def is_scored(is_policy, scored_tokens):
    """Whether a PRM scores a token of this writer."""
    return {"all": True, "policy": is_policy, "environment": not is_policy}[scored_tokens]


def weighted_to_the_minimum(rewards, positions):
    """Credit `min` (PURE, arXiv 2504.15275) of the rewards of a whole batch, as lists."""
    carried = [
        [r for r, is_one in zip(*each, strict=True) if is_one]
        for each in zip(rewards, positions, strict=True)
    ]
    pool = [r for row in carried for r in row]
    spread = math.sqrt(oracle.mean((r - oracle.mean(pool)) ** 2 for r in pool))
    result = []
    for row, marks, values in zip(rewards, positions, carried, strict=True):
        total = sum(math.exp(-r / (0.1 * spread)) for r in values)
        result.append(
            [
                math.exp(-r / (0.1 * spread)) / total * r if is_one else 0.0
                for r, is_one in zip(row, marks, strict=True)
            ]
        )
    return result


def advantages(batch, config, credited, positions, with_turn_rewards=False):
    """`prime_advantages` of a batch of Dialogues, as lists with zeros on replies."""
    num_rows = len(batch.ids)
    policy = [[t for t, is_policy in enumerate(row) if is_policy] for row in batch.writers]
    outcome = oracle.outcome_part(batch, _outcome_form(config.estimator), config.gamma_outcome)
    if with_turn_rewards:
        outcome = [_with_turn_rewards(batch, i, outcome[i], config) for i in range(num_rows)]
    rewards = credited
    if config.process_normalization == "batch_max":
        largest = max(abs(oracle.returns(rewards[i], 1.0)[t]) for i in range(num_rows) for t in policy[i])
        rewards = [[r / (largest + 1e-6) for r in row] for row in rewards]
    process = process_part(batch, rewards, positions, config)
    trust = 1.0
    if config.process_trust == "pair_accuracy":
        batch.rewards = credited
        trust = oracle.pair_trust(batch)
    parts = [(config.outcome_coef, outcome), (config.process_coef * trust, process)]
    parts = [(c, [[rows[i][t] for t in policy[i]] for i in range(num_rows)]) for c, rows in parts]
    if config.whitening == "per_source":
        parts = [(c, oracle.whiten(rows)) for c, rows in parts]
    total = [
        [sum(c * rows[i][k] for c, rows in parts) for k in range(len(policy[i]))] for i in range(num_rows)
    ]
    if config.whitening == "joint":
        total = oracle.whiten(total)
    full = [[0.0] * n for n in batch.lengths]
    for i in range(num_rows):
        for t, value in zip(policy[i], total[i], strict=True):
            full[i][t] = value
    return full


def _outcome_form(estimator):
    return "grpo" if estimator == "istar" else estimator


def _with_turn_rewards(batch, i, outcome, config):
    totals = [sum(row) for row in batch.turn_rewards]
    baseline = 0.0
    if config.estimator in ("rloo", "grpo", "istar"):
        baseline = oracle.mean(totals[j] for j in oracle.others(batch.ids, i))
    returns = oracle.returns(batch.turn_rewards[i], config.gamma_outcome)
    return [a + r - baseline for a, r in zip(outcome, returns, strict=True)]


def process_part(batch, rewards, positions, config):
    """The process advantage of every token, before replies are dropped."""
    carried = [
        [r for r, is_one in zip(row, marks, strict=True) if is_one]
        for row, marks in zip(rewards, positions, strict=True)
    ]
    result = []
    for i, own in enumerate(rewards):
        if config.estimator == "prm_value":
            result.append([-sum(own[:t]) for t in range(len(own))])
            continue
        if config.estimator == "istar":
            pool = [r for j in oracle.members(batch.ids, i) for r in carried[j]]
            normalized = standardized(carried[i], pool)
            ends = [t for t, is_one in enumerate(positions[i]) if is_one]
            result.append(
                [
                    next((v for end, v in zip(ends, normalized, strict=True) if end >= t), 0.0)
                    for t in range(len(own))
                ]
            )
            continue
        values = carried[i]
        if config.estimator == "rloo":
            values = oracle.baselined(carried, batch.ids, i, config.process_baseline)
        elif config.estimator == "grpo":
            means = [oracle.mean(carried[j]) for j in oracle.members(batch.ids, i)]
            values = standardized(values, means)
        remaining = iter(values)
        spread = [next(remaining) if is_one else 0.0 for is_one in positions[i]]
        result.append(oracle.returns(spread, config.gamma_process))
    return result


def standardized(values, pool):
    """Values in standard deviations of a pool, 0 if the pool is constant up to rounding."""
    if oracle.std(pool) <= 1e-6 * oracle.mean(abs(value) for value in pool):
        return [0.0] * len(values)
    return [(value - oracle.mean(pool)) / oracle.std(pool) for value in values]


def random_order(num_rows, seed):
    return torch.randperm(num_rows, generator=torch.Generator().manual_seed(seed))
