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
PRM = ("prm.beta=1.0", "prm.update_order=before")
"""A PRM whose logits have the scale of nats, updated with the batch before it scores it."""
CREDIT = (
    *PRM,
    "advantage.process_baseline=token_mean",
    "advantage.process_normalization=none",
    "advantage.whitening=joint",
    "advantage.process_trust=pair_accuracy",
    "filter.enabled=false",
    "policy.lr=6e-4",
    "prm.lr=5e-4",
    "prm.num_epochs=1",
    "prm.num_minibatches=4",
)
"""The settings of all forms of credit but the published one."""
HINDSIGHT = (*CREDIT, "advantage.process_credit=hindsight", "advantage.gamma_process=0.0")
RELEASED = (*PRM, "prm.lr=1e-4", "prm.num_epochs=2", "filter.enabled=false", "policy.lr=6e-4")
GAE = (
    "advantage.estimator=prm_gae",
    "advantage.process_credit=td",
    "advantage.gamma_process=0.9",
    "advantage.gamma_outcome=0.9",
)
CRITIC = (
    *("prm.loss=value", "advantage.estimator=gae", "advantage.process_credit=td"),
    *("advantage.gamma_process=0.99", "advantage.gamma_outcome=0.99"),
    *("advantage.process_normalization=none", "advantage.whitening=joint"),
    *("filter.enabled=false", "policy.lr=6e-4", "prm.lr=1e-3", "prm.num_epochs=1", "prm.num_minibatches=4"),
)
"""PPO: a critic of the policy's size that starts as a copy of it and sees the same tokens as a PRM."""
PRETRAINED = ("prm.path={prm}", "reference.path={sft}")
"""A PRM that was trained on the log of the run on outcomes alone with the same seed: 5,760 responses and their outcomes
that the run itself does not sample."""

DEMONSTRATED = ("prm.path={prm:demonstrations}", "reference.path={sft}", "prm.update_order=none")
"""A frozen PRM that was trained on the 5,000 demonstrations and their outcomes, which exist before the run."""
MARKS = (
    *("prm.path={prm:marks}", "reference.path={sft}", "prm.scored_tokens=environment"),
    *("prm.lr=3e-4", "prm.num_epochs=2", "prm.num_minibatches=1"),
)
"""A PRM of the demonstrations and their outcomes that scores only what the environment writes, and learns on."""
RIGHT_DEMONSTRATIONS = "model.path={right}"
"""A policy that was fine-tuned on the right demonstrations alone: the other use of their outcomes."""

METHODS: dict[str, Method] = {
    "rloo": Method("outcome rewards alone (RLOO)", (*OUTCOME, "policy.lr=6e-4")),
    "rloo_right": Method(
        "outcome rewards alone, fine-tuned on the right demonstrations",
        (*OUTCOME, "policy.lr=6e-4", RIGHT_DEMONSTRATIONS),
    ),
    "hindsight": Method("PRIME, hindsight credit", HINDSIGHT),
    "observation": Method(
        "PRIME, rewards on observations, gamma 1", (*CREDIT, "advantage.process_credit=observation")
    ),
    "released": Method("PRIME, released estimator", RELEASED),
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
    "hindsight_demonstrations": Method(
        "PRIME, hindsight credit, PRM of marks from the demonstrations", (*HINDSIGHT, *MARKS)
    ),
    "own_demonstrations": Method(
        "PRIME, each token its own reward, frozen PRM from the demonstrations",
        (*CREDIT, "advantage.gamma_process=0.0", *DEMONSTRATED),
    ),
    "own_pretrained": Method(
        "PRIME, each token its own reward, frozen PRM from an earlier run's log",
        (*CREDIT, "advantage.gamma_process=0.0", *PRETRAINED, "prm.update_order=none"),
    ),
    "released_pretrained": Method(
        "PRIME, released estimator, PRM from an earlier run's log",
        (*RELEASED, *PRETRAINED),
    ),
    "gae_pretrained": Method(
        "PRIME, GAE with the PRM's value, PRM from an earlier run's log", (*CREDIT, *GAE, *PRETRAINED)
    ),
    "critic": Method("PPO with a critic", CRITIC),
    "hindsight_intercept": Method(
        "PRIME, hindsight credit, cross-entropy with a class prior", (*HINDSIGHT, "prm.loss=ce_intercept")
    ),
    "hindsight_dpo": Method("PRIME, hindsight credit, DPO", (*HINDSIGHT, "prm.loss=dpo")),
    "hindsight_noisy_and": Method("PRIME, hindsight credit, noisy-AND", (*HINDSIGHT, "prm.loss=noisy_and")),
    "gae": Method("PRIME, GAE with the PRM's value", (*CREDIT, *GAE, "prm.loss=ce_intercept")),
    "gae_ipvrm": Method("PRIME, GAE with IPVRM's value", (*CREDIT, *GAE, "prm.loss=ipvrm")),
    "min": Method("PRIME, lowest reward (PURE)", (*CREDIT, "advantage.process_credit=min")),
    "own_turns": Method(
        "PRIME, each turn its own reward",
        (*CREDIT, "prm.granularity=turn", "advantage.gamma_process=0.0"),
    ),
    "istar": Method(
        "iStar, DPO of turns",
        (
            *PRM,
            "advantage.estimator=istar",
            "prm.granularity=turn",
            "prm.loss=dpo_units",
            "filter.enabled=false",
            "policy.lr=6e-4",
            "prm.lr=5e-4",
        ),
    ),
    "spro": Method(
        "SPRO, rewards of the policy itself",
        ("advantage.estimator=spro", "prm.source=policy", "filter.enabled=false", "policy.lr=6e-4"),
    ),
}

OF_TASKS: dict[str, tuple[str, ...]] = {"modulo29": ("policy.lr=2e-4",)}
"""Settings that the tuning seeds chose for a task, and that replace those of all methods on it."""


def settings_of(method: str, task: str) -> dict[str, str]:
    """Return the settings of a method on a task."""
    return dict(each.split("=", 1) for each in (*METHODS[method].overrides, *OF_TASKS.get(task, ())))
