"""The methods of the benchmark, each a list of `section.key=value` on top of base.toml.

`METHODS` holds the settings that the tuning seeds chose; only these run on held-out seeds. benchmarks/results/learning
records each setting that was tried.
"""

from dataclasses import dataclass

TUNING_SEEDS = (1, 2)
HELD_OUT_SEEDS = tuple(range(11, 19))


@dataclass(frozen=True)
class Method:
    """A way to turn outcomes, and maybe a PRM, into advantages."""

    title: str
    overrides: tuple[str, ...]


OUTCOME = ("prm.enabled=false",)
CREDIT = (
    "advantage.process_baseline=token_mean",
    "advantage.process_normalization=none",
    "advantage.whitening=per_source",
    "filter.enabled=false",
)
"""The settings of all forms of credit but the published one."""
HINDSIGHT = (*CREDIT, "advantage.process_credit=hindsight", "advantage.gamma_process=0.0")

METHODS: dict[str, Method] = {
    "rloo": Method("outcome rewards alone (RLOO)", (*OUTCOME, "policy.lr=6e-4")),
    "hindsight": Method("PRIME, hindsight credit", (*HINDSIGHT, "policy.lr=1.2e-3")),
    "released": Method("PRIME, released estimator", ("filter.enabled=true", "policy.lr=6e-4")),
    "oracle": Method(
        "oracle: which steps are right",
        (
            *OUTCOME,
            "environment.settings.rewards=true",
            "advantage.estimator=reinforce",
            "advantage.gamma_outcome=0.0",
            "filter.enabled=false",
            "policy.lr=1.2e-3",
        ),
    ),
}
