"""The [preset] table: published methods as settings, which a file and overrides may change key by key.

A preset is a table of values below those of the file, nothing more: `check` and `train` print it, and the resolved
configuration has every value. Sizes, learning rates, models, data and environments are no part of it. docs/methods.md
has the papers and what differs.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from megatron_prime.config.section import Section

PresetName = Literal[
    "cispo",
    "dapo",
    "dr_grpo",
    "gspo",
    "ipvrm",
    "istar",
    "outcome",
    "paper",
    "ppo",
    "pure",
    "reinforce_pp",
    "released",
    "spro",
    "tools",
]
Values = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Preset:
    """Settings of a published method."""

    method: str
    """The method and its source, in one phrase."""
    values: Values
    """Table -> key -> value."""


PRESETS: dict[str, Preset] = {
    "paper": Preset(
        "PRIME as its text says, arXiv 2502.01456",
        {
            "advantage": {
                "estimator": "rloo",
                "process_credit": "own",
                "process_baseline": "token_mean",
                "process_normalization": "none",
                "whitening": "none",
            },
            "prm": {"loss": "ce", "reward_scale": "beta", "granularity": "token", "update_order": "after"},
            "policy": {"loss": "ppo_clip", "aggregation": "token"},
            "filter": {"enabled": True},
        },
    ),
    "released": Preset(
        "PRIME as its released code computes it",
        {
            "advantage": {
                "estimator": "rloo",
                "process_credit": "own",
                "process_baseline": "released",
                "process_normalization": "batch_max",
                "whitening": "joint",
            },
            "prm": {"loss": "ce", "reward_scale": "raw", "granularity": "token", "update_order": "after"},
            "policy": {"loss": "ppo_clip", "aggregation": "token"},
            "filter": {"enabled": True},
        },
    ),
    "outcome": Preset(
        "outcome rewards alone with leave-one-out baselines (RLOO), arXiv 2402.14740",
        {"advantage": {"estimator": "rloo", "whitening": "none"}, "prm": {"enabled": False}},
    ),
    "tools": Preset(
        "credit by what follows a decision, for tools and environments; ours",
        {
            "advantage": {
                "estimator": "rloo",
                "process_credit": "hindsight",
                "process_normalization": "none",
                "whitening": "joint",
                "gamma_process": 0.5,
                "process_trust": "pair_accuracy",
            },
            "prm": {"loss": "ce", "scored_tokens": "all", "update_order": "before", "num_epochs": 2},
        },
    ),
    "spro": Preset(
        "SPRO, the policy as its own PRM, arXiv 2507.01551",
        {
            "advantage": {"estimator": "spro", "process_normalization": "none", "whitening": "none"},
            "prm": {"source": "policy", "granularity": "token"},
            "reference": {"mode": "freeze"},
            "policy": {"loss": "ppo_clip"},
        },
    ),
    "pure": Preset(
        "PURE, credit by the lowest reward of the steps, arXiv 2504.15275",
        {
            "advantage": {
                "estimator": "rloo",
                "process_credit": "min",
                "process_baseline": "sequence_spread",
                "process_normalization": "none",
                "whitening": "none",
                "gamma_process": 1.0,
            },
            "prm": {"granularity": "step"},
        },
    ),
    "istar": Preset(
        "iStar, rewards of turns for agents, arXiv 2509.19199",
        {
            "advantage": {"estimator": "istar", "process_normalization": "none", "whitening": "none"},
            "prm": {"loss": "dpo", "granularity": "turn", "scored_tokens": "policy"},
            "reference": {"mode": "policy"},
        },
    ),
    "ipvrm": Preset(
        "IPVRM, differences of values trained on every prefix, arXiv 2604.13197",
        {
            "advantage": {"process_credit": "td", "process_normalization": "none", "whitening": "none"},
            "prm": {"loss": "ipvrm", "beta": 10.0},
        },
    ),
    "ppo": Preset(
        "PPO with a critic, arXiv 1707.06347, and generalized advantage estimation, arXiv 1506.02438",
        {
            "advantage": {
                "estimator": "gae",
                "process_credit": "td",
                "process_normalization": "none",
                "whitening": "joint",
                "gamma_process": 1.0,
                "gamma_outcome": 1.0,
            },
            "prm": {"loss": "value", "granularity": "token", "update_order": "after"},
            "policy": {"loss": "ppo_clip", "aggregation": "token"},
            "filter": {"enabled": False},
        },
    ),
    "gspo": Preset(
        "GSPO, one probability ratio a response, arXiv 2507.18071; outcomes alone",
        {
            "advantage": {"estimator": "grpo", "whitening": "none"},
            "prm": {"enabled": False},
            "policy": {"loss": "gspo", "clip_low": 3e-4, "clip_high": 4e-4, "aggregation": "sequence"},
        },
    ),
    "cispo": Preset(
        "CISPO of MiniMax-M1, clipped weights that keep every gradient, arXiv 2506.13585; outcomes alone",
        {
            "advantage": {"estimator": "grpo", "whitening": "none"},
            "prm": {"enabled": False},
            "policy": {"loss": "cispo", "clip_low": 0.99, "clip_high": 2.0, "aggregation": "token"},
        },
    ),
    "dr_grpo": Preset(
        "Dr. GRPO, no division by lengths or deviations, arXiv 2503.20783; outcomes alone",
        {
            "advantage": {"estimator": "rloo", "whitening": "none"},
            "prm": {"enabled": False},
            "policy": {"loss": "ppo_clip", "aggregation": "constant"},
        },
    ),
    "dapo": Preset(
        "DAPO, a higher upper clip and groups of right and wrong responses, arXiv 2503.14476; outcomes alone",
        {
            "advantage": {"estimator": "grpo", "whitening": "none"},
            "prm": {"enabled": False},
            "policy": {"loss": "ppo_clip", "clip_low": 0.2, "clip_high": 0.28, "aggregation": "token"},
            "filter": {"enabled": True, "accuracy_min": 0.001, "accuracy_max": 0.999, "overlong": "penalize"},
        },
    ),
    "reinforce_pp": Preset(
        "REINFORCE++, no groups and advantages normalized over the batch, arXiv 2501.03262; outcomes alone",
        {
            "advantage": {"estimator": "reinforce", "whitening": "joint"},
            "prm": {"enabled": False},
            "policy": {"loss": "ppo_clip", "kl_coef": 0.01, "kl_estimator": "k2"},
            "filter": {"enabled": False},
        },
    ),
}
"""preset.name -> the preset."""


class PresetConfig(Section):
    """Settings of a published method as the defaults of this file."""

    name: PresetName | None = None
    """The preset, whose values stand below those of the file and the command line; docs/methods.md describes each. none
    for the defaults of each key."""


def with_preset(data: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a file and overrides on top of the preset that they name; unknown names change nothing."""
    table = data.get("preset")
    name = table.get("name") if isinstance(table, dict) else None
    preset = PRESETS.get(name) if isinstance(name, str) else None
    if preset is None:
        return data
    merged = dict(data)
    for section, values in preset.values.items():
        own = data.get(section, {})
        # What is no table is a fault that the validation reports.
        merged[section] = {**values, **own} if isinstance(own, dict) else own
    return merged


def preset_lines(name: str | None, resolved: dict[str, Any]) -> Iterator[str]:
    """Yield what a preset sets, and which of its values the run has changed.

    Args:
        name: `preset.name`.
        resolved: the whole configuration as plain values.
    """
    if name is None:
        return
    yield f"preset {name}: {PRESETS[name].method}"
    changed = []
    for section, values in PRESETS[name].values.items():
        now = {key: resolved[section][key] for key in values}
        yield f"  [{section}] " + ", ".join(f"{key} = {value}" for key, value in now.items())
        changed += [
            f"{section}.{key} (preset: {value})" for key, value in values.items() if now[key] != value
        ]
    if changed:
        yield f"  changed by the file or the command line: {', '.join(changed)}"
