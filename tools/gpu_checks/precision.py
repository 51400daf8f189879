"""bf16 and FP8 compared to fp32 by loss curves on the same rows; process rewards that must be 0 before an update."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from megatron_prime.config.tables.prm import PRMConfig
from megatron_prime.training.losses import PRMRowLoss, SFTRowLoss, minibatch_weights_BT
from tools.gpu_checks.lines import FAULTS, Line, Setting, failed, info, judged, skipped
from tools.gpu_checks.roles import (
    FP8_RECIPES,
    Roles,
    Sequences,
    fp8_fault_here,
    random_sequences,
    roles,
    write_shape,
)

BETA = 0.05
BOUNDS = {"sft": {"bf16": 0.03, "fp8": 0.1}, "prm": {"bf16": 0.02, "fp8": 0.05}}
"""Bounds in nats on the difference of the mean loss over the last fifth of the steps from fp32's."""
FOLLOWS_RULE = 0.8
"""Share of tokens that follow the rule; the others are random, so that the loss cannot go to 0."""

WRONG_LABELS = 0.15
"""Share of the PRM's labels that are flipped, for the same reason."""


@dataclass(frozen=True)
class Format:
    """A number format to train in."""

    name: str
    overrides: tuple[str, ...]
    bound: str = ""
    """Key into BOUNDS; empty for fp32, the baseline."""
    recipe: str = ""


FORMATS = (
    Format("fp32", ("platform.dtype=fp32", "platform.layers=torch")),
    Format("bf16, torch layers", ("platform.dtype=bf16", "platform.layers=torch"), "bf16"),
    Format("bf16", ("platform.dtype=bf16",), "bf16"),
    *(
        Format(f"fp8 {recipe}", ("platform.dtype=bf16", f"fp8.policy={recipe}"), "fp8", recipe)
        for recipe in FP8_RECIPES
    ),
)


@dataclass(frozen=True)
class Sizes:
    """Sizes of a training curve."""

    num_steps: int
    num_rows: int
    prompt_tokens: int
    response_tokens: int
    vocab_size: int

    @staticmethod
    def of(setting: Setting) -> "Sizes":
        """Return a hundred steps, sixty in a short setting, or a few in a tiny one."""
        if setting.is_tiny:
            return Sizes(6, 4, 4, 12, 128)
        return Sizes(60 if setting.is_short else 100, 16, 16, 112, 1024)

    @property
    def last(self) -> int:
        """Number of steps in the last fifth."""
        return max(1, self.num_steps // 5)


def parity(setting: Setting) -> Iterator[Line]:
    """Train SFT and PRM in each format, on the same rows from the same weights, and compare losses to fp32."""
    model = write_shape(setting, "small", with_weights=True)
    for kind in ("sft", "prm"):
        baseline: list[float] = []
        for form in FORMATS:
            what = f"{kind} loss, {form.name}"
            reason = _reason_to_skip(kind, form, setting)
            if reason is not None:
                yield skipped(what, reason)
                continue
            try:
                curve = _curve(kind, form, model, setting)
            except FAULTS as error:
                yield failed(what, error)
                continue
            if form.bound and not baseline:
                yield skipped(what, "the fp32 baseline failed")
                continue
            if not form.bound:
                baseline = curve
                yield _first_line(what, curve, setting)
                continue
            yield _compared(kind, form, curve, baseline, setting)


def _reason_to_skip(kind: str, form: Format, setting: Setting) -> str | None:
    if form.recipe == "delayed" and kind == "prm":
        return "refused for a PRM: its scales depend on the data seen, so that it would differ from the reference"
    if form.name == "bf16, torch layers" and not setting.is_cuda:
        return "no GPU: the same as bf16 below"
    return fp8_fault_here(form.recipe, setting) if form.recipe else None


def _first_line(what: str, curve: list[float], setting: Setting) -> Line:
    """Judge the baseline: fp32 must learn, or a comparison to it means nothing."""
    last, is_few = mean_of_last(curve, Sizes.of(setting).last), setting.is_tiny or setting.is_short
    return Line(
        what,
        "skipped" if is_few else "pass" if last < 0.75 * curve[0] else "fail",
        last,
        "nats",
        "under 0.75 of the first step",
        f"toy size, or few steps: {_at_steps(curve)}" if is_few else _at_steps(curve),
        tuple(curve),
    )


def _compared(kind: str, form: Format, curve: list[float], baseline: list[float], setting: Setting) -> Line:
    number = Sizes.of(setting).last
    gap = abs(mean_of_last(curve, number) - mean_of_last(baseline, number))
    bound = BOUNDS[kind][form.bound]
    return Line(
        f"{kind} loss, {form.name}: difference from fp32 in the last {number} steps",
        "pass" if gap <= bound else "fail",
        gap,
        "nats",
        f"<= {bound}",
        _at_steps(curve),
        tuple(curve),
    )


def mean_of_last(curve: list[float], number: int) -> float:
    """Return the mean of a curve's last `number` values."""
    return sum(curve[-number:]) / number


def _at_steps(curve: list[float]) -> str:
    places = sorted({0, len(curve) // 4, len(curve) // 2, 3 * len(curve) // 4, len(curve) - 1})
    return "; ".join(f"step {place + 1}: {curve[place]:.4f}" for place in places)


def _curve(kind: str, form: Format, model: Path, setting: Setting) -> list[float]:
    # A large learning rate, so that a hundred steps learn the rule.
    lr = "policy.lr=1e-3" if kind == "sft" else "prm.lr=1e-3"
    overrides = [
        override.replace("fp8.policy", "fp8.prm") if kind == "prm" else override
        for override in form.overrides
    ]
    if kind == "sft":
        overrides += ["prm.enabled=false"]
    with roles(setting, model, lr, f"prm.beta={BETA}", *overrides) as built:
        step = _sft_loss if kind == "sft" else _prm_loss
        return [step(built, index, Sizes.of(setting)) for index in range(Sizes.of(setting).num_steps)]


def _sft_loss(built: Roles, index: int, sizes: Sizes) -> float:
    sequences = ruled_sequences(sizes, index, [0] * sizes.num_rows)
    mask_BT = torch.ones(sizes.num_rows, sizes.response_tokens, dtype=torch.bool)
    rows = list(range(sizes.num_rows))
    # All response tokens of the minibatch have the same weight.
    weights_BT = minibatch_weights_BT(mask_BT, rows, "token").to(built.topology.platform.device)
    _, metrics = built.policy.update(sequences, rows, SFTRowLoss(weights_BT))
    return metrics["loss"]


def _prm_loss(built: Roles, index: int, sizes: Sizes) -> float:
    labels = [row % 2 for row in range(sizes.num_rows)]
    sequences = ruled_sequences(sizes, index, labels)
    is_wrong = torch.rand(sizes.num_rows, generator=torch.Generator().manual_seed(index)) < WRONG_LABELS
    labels = [1 - label if wrong else label for label, wrong in zip(labels, is_wrong.tolist(), strict=True)]
    device = built.topology.platform.device
    loss = PRMRowLoss(
        config=PRMConfig(beta=BETA),
        num_rows=sizes.num_rows,
        ref_logprobs_BT=built.reference.score(sequences).logprobs_BT,
        scored_mask_BT=torch.ones(sizes.num_rows, sizes.response_tokens, dtype=torch.bool, device=device),
        outcome_rewards_B=torch.tensor(labels, dtype=torch.float32, device=device),
    )
    _, metrics = built.prm.update(sequences, list(range(sizes.num_rows)), loss)
    return metrics["loss"]


def ruled_sequences(sizes: Sizes, seed: int, rules: list[int]) -> Sequences:
    """Return rows in which a token mostly determines the next one, by one of two fixed rules (a permutation)."""
    tables = torch.stack(
        [
            torch.randperm(sizes.vocab_size, generator=torch.Generator().manual_seed(10**6 + rule))
            for rule in range(2)
        ]
    )
    generator = torch.Generator().manual_seed(seed)
    length = sizes.prompt_tokens + sizes.response_tokens
    tokens = torch.randint(0, sizes.vocab_size, (len(rules), length), generator=generator)
    is_ruled = torch.rand(len(rules), length, generator=generator) < FOLLOWS_RULE
    of_row = torch.tensor(rules)
    for place in range(1, length):
        follows = tables[of_row, tokens[:, place - 1]]
        tokens[:, place] = torch.where(is_ruled[:, place], follows, tokens[:, place])
    return [(row[: sizes.prompt_tokens].tolist(), row[sizes.prompt_tokens :].tolist()) for row in tokens]


def zero_rewards(setting: Setting) -> Iterator[Line]:
    """Check that every process reward is exactly 0 while PRM and reference have the same weights."""
    model = write_shape(setting, "small", with_weights=True)
    forms = [
        ("fp32", "", ("platform.dtype=fp32", "platform.layers=torch")),
        ("bf16, torch layers", "", ("platform.dtype=bf16", "platform.layers=torch")),
        ("bf16", "", ("platform.dtype=bf16",)),
        *(
            (f"fp8 {recipe}", recipe, ("platform.dtype=bf16", f"fp8.prm={recipe}"))
            for recipe in FP8_RECIPES
            if recipe != "delayed"
        ),
        (
            "fp8 tensorwise, weights in FP8",
            "tensorwise",
            ("platform.dtype=bf16", "fp8.prm=tensorwise", "fp8.primary_weights=true"),
        ),
    ]
    for name, recipe, overrides in forms:
        what = f"largest process reward at step 0, {name}"
        reason = fp8_fault_here(recipe, setting) if recipe else None
        if reason is not None:
            yield skipped(what, reason, "0")
            continue
        try:
            with roles(setting, model, *overrides) as built:
                yield from _zero_lines(what, built, setting)
        except FAULTS as error:
            yield failed(what, error)


def _zero_lines(what: str, built: Roles, setting: Setting) -> Iterator[Line]:
    sizes = Sizes.of(setting)
    sequences = random_sequences(sizes.vocab_size, sizes.num_rows, sizes.prompt_tokens, sizes.response_tokens)
    # Different lengths exercise padding and packing.
    sequences = [
        (prompt, response[: len(response) - row]) for row, (prompt, response) in enumerate(sequences)
    ]
    lengths_B = torch.tensor([len(response) for _, response in sequences])
    mask_BT = (torch.arange(sizes.response_tokens) < lengths_B[:, None]).to(built.topology.platform.device)
    ref_logprobs_BT = built.reference.score(sequences).logprobs_BT
    loss = PRMRowLoss(
        config=PRMConfig(beta=BETA),
        num_rows=sizes.num_rows,
        ref_logprobs_BT=ref_logprobs_BT,
        scored_mask_BT=mask_BT,
        outcome_rewards_B=(torch.arange(sizes.num_rows) % 2).to(mask_BT.device, torch.float32),
    )
    scored = built.prm.score(sequences)
    in_update, metrics = built.prm.update(sequences, list(range(sizes.num_rows)), loss)
    for way, logprobs_BT in (("scored", scored.logprobs_BT), ("in the update", in_update.logprobs_BT)):
        largest = (BETA * (logprobs_BT - ref_logprobs_BT)).abs().max().item()
        yield judged(f"{what}, {way}", largest, "nats", "0", largest == 0.0)
    after = built.prm.score(sequences).logprobs_BT
    moved = (after - ref_logprobs_BT).abs().max().item()
    # Without this, 0 above would prove nothing: both models could ignore their weights.
    yield judged(f"{what.replace('at step 0', 'after an update')}", moved, "nats", "over 0", moved > 0.0)
    yield info(f"prm loss at step 0, {what.rpartition(', ')[2]}", metrics["loss"], "nats")
