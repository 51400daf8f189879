"""The paper's equations as plain float64 loops, written from the equations and not from the package.

A response is a list of floats, one per token; a batch is a list of responses beside a list of group ids.
"""

import math
import random

import torch


def replace(config, **changes):
    """Return a configuration section with some options changed, validated again."""
    return type(config)(**config.model_dump() | changes)


class Batch:
    """Ragged responses in scattered groups, as lists for the oracle and as tensors for the package."""

    def __init__(self, seed, sizes=(4, 4, 4), max_length=7, soft=False, dtype=torch.float64, extra_padding=0):
        rng = random.Random(seed)
        ids = [group for group, size in enumerate(sizes) for _ in range(size)]
        rng.shuffle(ids)
        names = [37, 5, 11, 2, 90][: len(sizes)]
        self.ids = [names[i] for i in ids]
        self.lengths = [rng.randint(1, max_length) for _ in ids]
        self.outcomes = [
            rng.choice([0.0, 0.25, 0.5, 1.0]) if soft else float(rng.random() < 0.5) for _ in ids
        ]
        self.rewards = [[rng.gauss(0, 1) for _ in range(n)] for n in self.lengths]
        self.num_columns = max(self.lengths) + extra_padding
        self.dtype = dtype

    @property
    def group_ids_B(self):
        return torch.tensor(self.ids)

    @property
    def outcome_rewards_B(self):
        return torch.tensor(self.outcomes, dtype=self.dtype)

    @property
    def mask_BT(self):
        return torch.tensor([[t < n for t in range(self.num_columns)] for n in self.lengths])

    def padded(self, rows, padding=math.nan):
        """Rows of floats as [B, T]; the padding is poison, so that any use of it shows."""
        full = [list(row) + [padding] * (self.num_columns - len(row)) for row in rows]
        return torch.tensor(full, dtype=self.dtype)

    @property
    def rewards_BT(self):
        return self.padded(self.rewards)

    def noise(self, seed, scale=1.0):
        """Another ragged list of normal numbers of the same lengths."""
        rng = random.Random(seed)
        return [[rng.gauss(0, scale) for _ in range(n)] for n in self.lengths]


def others(ids, i):
    return [j for j in range(len(ids)) if ids[j] == ids[i] and j != i]


def members(ids, i):
    return [j for j in range(len(ids)) if ids[j] == ids[i]]


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def std(values):
    values = list(values)
    centre = mean(values)
    return math.sqrt(sum((v - centre) ** 2 for v in values) / (len(values) - 1))


def returns(rewards, gamma):
    """R_t = sum over s >= t of gamma^(s-t) r_s."""
    return [sum(gamma ** (s - t) * rewards[s] for s in range(t, len(rewards))) for t in range(len(rewards))]


def outcome_return(advantage, length, gamma):
    return [gamma ** (length - 1 - t) * advantage for t in range(length)]


def outcome_part(batch, estimator, gamma):
    result = []
    for i, r in enumerate(batch.outcomes):
        if estimator == "rloo":
            a = r - mean(batch.outcomes[j] for j in others(batch.ids, i))
        elif estimator == "grpo":
            group = [batch.outcomes[j] for j in members(batch.ids, i)]
            a = 0.0 if len(set(group)) == 1 else (r - mean(group)) / std(group)
        else:
            a = r
        result.append(outcome_return(a, batch.lengths[i], gamma))
    return result


def baselined(rewards, ids, i, form):
    """The rewards of response i minus its process baseline, token by token."""
    own = rewards[i]
    if form == "sequence_sum":
        b = mean(sum(rewards[j]) for j in others(ids, i))
        return [r - b for r in own]
    if form == "sequence_spread":
        b = mean(sum(rewards[j]) for j in others(ids, i)) / len(own)
        return [r - b for r in own]
    if form == "token_mean":
        b = mean(mean(rewards[j]) for j in others(ids, i))
        return [r - b for r in own]
    size = len(members(ids, i))
    b = sum(mean(rewards[j]) for j in members(ids, i)) / (size - 1)
    return [r * size / (size - 1) - b for r in own]


def process_part(rewards, ids, estimator, form, gamma):
    result = []
    for i, own in enumerate(rewards):
        if estimator == "prm_value":
            result.append([-sum(own[:t]) for t in range(len(own))])
            continue
        if estimator == "rloo":
            own = baselined(rewards, ids, i, form)
        elif estimator == "grpo":
            means = [mean(rewards[j]) for j in members(ids, i)]
            own = [(r - mean(means)) / std(means) for r in own]
        result.append(returns(own, gamma))
    return result


def whiten(rows):
    flat = [v for row in rows for v in row]
    centre = mean(flat)
    variance = sum((v - centre) ** 2 for v in flat) / (len(flat) - 1)
    return [[(v - centre) / math.sqrt(variance + 1e-8) for v in row] for row in rows]


def batch_max(rewards):
    largest = max(abs(v) for row in rewards for v in returns(row, 1.0))
    return [[r / (largest + 1e-6) for r in row] for row in rewards]


def pair_trust(batch):
    """2a - 1, a the share of pairs of a group that the sums of the rewards order as the outcomes do."""
    won = []
    for i, own in enumerate(batch.rewards):
        for j in others(batch.ids, i):
            if batch.outcomes[i] > batch.outcomes[j]:
                gap = sum(own) - sum(batch.rewards[j])
                won.append(0.5 if gap == 0 else float(gap > 0))
    return max(0.0, 2 * mean(won) - 1) if won else 0.0


def advantages(batch, config):
    """The whole of prime_advantages from its parts."""
    parts = [(config.outcome_coef, outcome_part(batch, config.estimator, config.gamma_outcome))]
    rewards = batch.rewards
    if config.process_normalization == "batch_max":
        rewards = batch_max(rewards)
    process = process_part(
        rewards, batch.ids, config.estimator, config.process_baseline, config.gamma_process
    )
    trust = 1.0 if config.process_trust == "full" else pair_trust(batch)
    parts.append((config.process_coef * trust, process))
    if config.whitening == "per_source":
        parts = [(c, whiten(rows)) for c, rows in parts]
    total = [
        [sum(c * rows[i][t] for c, rows in parts) for t in range(n)] for i, n in enumerate(batch.lengths)
    ]
    return whiten(total) if config.whitening == "joint" else total


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def ce(score, label):
    return -label * math.log(sigmoid(score)) - (1 - label) * math.log(sigmoid(-score))


def prior_logit(labels, ids, i):
    """Logit of the accuracy of the group's other members, shrunk to that of the batch's other responses."""
    rest = [labels[j] for j in range(len(labels)) if j != i]
    batch = mean(rest) if rest else 0.5
    known = [labels[j] for j in others(ids, i)]
    accuracy = min(max((sum(known) + 2 * batch) / (len(known) + 2), 0.02), 0.98)
    return math.log(accuracy / (1 - accuracy))


def pair_target(scores, labels, ids, i):
    """Mean score of the members on the other side of the label."""
    if labels[i] > 0:
        chosen = [scores[j] for j in members(ids, i) if labels[j] < labels[i]]
    else:
        chosen = [scores[j] for j in members(ids, i) if labels[j] > labels[i]]
    return mean(chosen) if chosen else 0.0


def pair_weight(scores, labels, ids, i, kind):
    if kind == "dpo":
        return 1.0
    ranked = scores if kind == "bon_rm" else labels
    group = members(ids, i)
    share = mean(float(ranked[j] <= ranked[i]) for j in group)
    return len(group) * share ** (len(group) - 1)


def pair_loss(score, label, other):
    sign = 1 if label > 0 else -1
    return -math.log(sigmoid(sign * (score - other)))


def policy_token_loss(new, old, advantage, config, entropy=0.0, ref=0.0, correction=1.0):
    ratio = math.exp(new - old)
    clipped = min(max(ratio, 1 - config.clip_low), 1 + config.clip_high)
    loss = -min(advantage * ratio, advantage * clipped)
    if config.dual_clip is not None and advantage < 0:
        loss = min(loss, -advantage * config.dual_clip)
    loss *= correction
    d = new - ref
    kl = {"k1": d, "k2": d * d / 2, "k3": math.exp(-d) - 1 + d}[config.kl_estimator]
    return loss - config.entropy_coef * entropy + config.kl_coef * kl
