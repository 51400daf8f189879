"""Corrections for the policy that sampled, as plain float64 loops, and checks of the package against them.

Written from the equations: the loss of a token is multiplied by a constant: its own ratio of proximal to behaviour
policy, the product of the ratios of its response, or their geometric mean, bounded or set to 0 outside of two bounds.
"""

import math

import pytest
import torch

from megatron_prime.algorithm.correction import correction_weights_BT
from megatron_prime.algorithm.policy_loss import aggregation_weights_BT, policy_loss
from megatron_prime.config.tables.policy import PolicyConfig
from tests.algorithm import oracle
from tests.algorithm.dialogues import Dialogues
from tests.algorithm.oracle import Batch

SURROGATE = {"clip_low": 0.2, "clip_high": 0.28, "dual_clip": 2.0}


def ratio(form, log_ratios, t):
    """The ratio of token t of a response, before bounds; log_ratios are those of its trained tokens."""
    if form == "token":
        return math.exp(log_ratios[t])
    product = 1.0
    for each in log_ratios:
        product *= math.exp(each)
    return product if form == "sequence" else product ** (1 / len(log_ratios))


def bounded(value, config):
    if config.correction_low <= value <= config.correction_high:
        return value
    if config.correction_outside == "mask":
        return 0.0
    return config.correction_low if value < config.correction_low else config.correction_high


def options(form, low=0.0, high=2.0, outside="truncate", **more):
    return PolicyConfig(
        correction=form, correction_low=low, correction_high=high, correction_outside=outside, **more
    )


def log_ratios(form, rows):
    """What the package's ratio makes of ragged log-ratios."""
    weights, _ = correction_weights_BT(*_tensors(rows), options(form, high=1e8))
    return [
        [round(math.log(w), 6) for w in row[: len(own)]]
        for row, own in zip(weights.tolist(), rows, strict=True)
    ]


def weights(form, rows, **bounds):
    """The package's weights of ragged log-ratios, and which were outside, both ragged."""
    found = correction_weights_BT(*_tensors(rows), options(form, **bounds))
    return tuple([row[: len(own)] for row, own in zip(each.tolist(), rows, strict=True)] for each in found)


def _tensors(rows):
    width = max(map(len, rows)) + 2
    prox = [[*row, *[math.nan] * (width - len(row))] for row in rows]
    mask = [[t < len(row) for t in range(width)] for row in rows]
    prox_BT = torch.tensor(prox, dtype=torch.float64)
    return prox_BT, torch.zeros_like(prox_BT), torch.tensor(mask)


def check_against_loops(form, high):
    """Compare loss and gradient with the loops, for both bounds, with ragged rows, padding and replies."""
    for seed in range(2):
        for outside in ("truncate", "mask"):
            config = options(form, 1 / high, high, outside, **SURROGATE)
            for batch in (Batch(seed, sizes=(2, 3), extra_padding=2), Dialogues(seed, sizes=(2, 2))):
                _check_one(batch, config, seed)


def _check_one(batch, config, seed):
    names = ("new", "old", "advantage", "rollout")
    rows = {name: batch.noise(seed + k, scale=0.3) for k, name in enumerate(names)}
    writers = getattr(batch, "writers", [[True] * n for n in batch.lengths])
    mask_BT = batch.padded(writers, padding=0.0).bool()
    weights_BT = aggregation_weights_BT(mask_BT, "token").double()
    tensors = {name: batch.padded(values).masked_fill(~mask_BT, math.nan) for name, values in rows.items()}
    new_BT = tensors["new"].requires_grad_()
    loss, _ = policy_loss(
        new_BT,
        tensors["old"],
        tensors["advantage"],
        weights_BT,
        config,
        rollout_logprobs_BT=tensors["rollout"],
    )
    loss.backward()
    expected, num_outside = 0.0, 0
    for i, row in enumerate(writers):
        own = [t for t, is_policy in enumerate(row) if is_policy]
        gaps = [rows["old"][i][t] - rows["rollout"][i][t] for t in own]
        for k, t in enumerate(own):
            plain = ratio(config.correction, gaps, k)
            weight = float(weights_BT[i, t]) * bounded(plain, config)
            num_outside += not config.correction_low <= plain <= config.correction_high
            values = rows["old"][i][t], rows["advantage"][i][t], config
            expected += weight * oracle.policy_token_loss(rows["new"][i][t], *values)
            up, down = (oracle.policy_token_loss(rows["new"][i][t] + step, *values) for step in (1e-6, -1e-6))
            assert float(new_BT.grad[i, t]) == pytest.approx(weight * (up - down) / 2e-6, rel=1e-4, abs=1e-8)
    assert num_outside > 0
    assert not new_BT.grad[~mask_BT].any()
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-6)
