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
    "advantage.process_trust=pair_accuracy",
    "filter.enabled=false",
    "policy.lr=6e-4",
    "prm.lr=5e-4",
    "prm.num_epochs=1",
    "prm.num_minibatches=4",
)
"""The settings of all forms of credit but the published one."""
HINDSIGHT = (*CREDIT, "advantage.process_credit=hindsight", "advantage.gamma_process=0.0")
PRETRAINED = ("prm.path={prm}", "reference.path={sft}")
"""A PRM that was trained on the log of the run on outcomes alone with the same seed: 5,760 responses and their outcomes
that the run itself does not sample."""

METHODS: dict[str, Method] = {
    "rloo": Method("outcome rewards alone (RLOO)", (*OUTCOME, "policy.lr=6e-4")),
    "hindsight": Method("PRIME, hindsight credit", HINDSIGHT),
    "observation": Method(
        "PRIME, rewards on observations, gamma 1", (*CREDIT, "advantage.process_credit=observation")
    ),
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
    "hindsight_pretrained": Method(
        "PRIME, hindsight credit, PRM from an earlier run's log", (*HINDSIGHT, *PRETRAINED)
    ),
    "own_pretrained": Method(
        "PRIME, each token its own reward, PRM from an earlier run's log",
        (*CREDIT, "advantage.gamma_process=0.0", *PRETRAINED),
    ),
    "released_pretrained": Method(
        "PRIME, released estimator, PRM from an earlier run's log",
        ("filter.enabled=true", "policy.lr=6e-4", *PRETRAINED),
    ),
    "gae_pretrained": Method(
        "PRIME, GAE with the PRM's value, PRM from an earlier run's log",
        (
            *CREDIT,
            "advantage.estimator=prm_gae",
            "advantage.process_credit=td",
            "advantage.gamma_process=0.9",
            *PRETRAINED,
        ),
    ),
}
