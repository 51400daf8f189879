"""The PRM objectives as float64 loops over scored tokens, written from their equations.

A response is the list of the log-ratios of its scored tokens, beside a list of their units.
"""

import math

from tests.algorithm import oracle


def prefix_logits(kind, q, beta, prior):
    """Logit of the value of the first t scored tokens, t = 0..n."""
    if kind == "ipvrm":
        return [0.0] + [beta * sum(q[:t]) / t for t in range(1, len(q) + 1)]
    if kind == "noisy_and":
        chances = noisy_and(q, beta, oracle.sigmoid(prior))
        return [math.log(chance / (1 - chance)) for chance in chances]
    return [prior + beta * sum(q[:t]) for t in range(len(q) + 1)]


def noisy_and(q, beta, prior, error=0.01):
    """Chance of a right response given its first t tokens; the rest succeed as at q = 0."""
    share = (min(max(prior, 2 * error), 1 - 2 * error) - error) / (1 - 2 * error)
    each = share ** (1 / len(q)) if q else share
    start = math.log(each / (1 - each))
    success = [oracle.sigmoid(start + beta * value) for value in q]
    return [
        error + (1 - 2 * error) * math.prod(success[:t]) * each ** (len(q) - t) for t in range(len(q) + 1)
    ]


def losses(kind, q, units, labels, ids, beta, before=None):
    """The loss of each response; `before` are the log-ratios before the update."""
    before = q if before is None else before
    result = []
    for i, label in enumerate(labels):
        score, prior = beta * sum(q[i]), oracle.prior_logit(labels, ids, i)
        if kind == "ce":
            result.append(oracle.ce(score, label))
        elif kind == "ce_intercept":
            result.append(oracle.ce(prior + score, label))
        elif kind == "ipvrm":
            logits = prefix_logits(kind, q[i], beta, prior)[1:]
            result.append(oracle.mean(oracle.ce(logit, label) for logit in logits) if logits else 0.0)
        elif kind == "noisy_and":
            chance = noisy_and(q[i], beta, oracle.sigmoid(prior))[-1]
            result.append(-label * math.log(chance) - (1 - label) * math.log(1 - chance))
        elif kind == "dpo_units":
            result.append(oracle.mean(unit_terms(i, q, units, labels, ids, beta, before)))
        else:
            scores = [beta * sum(row) for row in before]
            loss = oracle.pair_loss(score, label, oracle.pair_target(scores, labels, ids, i))
            result.append(loss * oracle.pair_weight(scores, labels, ids, i, kind))
    return result


def after_units(q, units, count, beta):
    """Score of the tokens in the first `count` units of a response."""
    first = sorted(set(units))[:count]
    return beta * sum(value for value, unit in zip(q, units, strict=True) if unit in first)


def unit_terms(i, q, units, labels, ids, beta, before):
    for count in range(1, max(1, len(set(units[i]))) + 1):
        scores = [after_units(row, of_row, count, beta) for row, of_row in zip(before, units, strict=True)]
        other = oracle.pair_target(scores, labels, ids, i)
        yield oracle.pair_loss(after_units(q[i], units[i], count, beta), labels[i], other)
