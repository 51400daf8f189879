"""The charts of the page of curves, and the question that each answers."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Series:
    """One line of a chart."""

    metric: str
    label: str
    low: str = ""
    """Metric of the lower end of a band around the line; "" for none."""
    high: str = ""


@dataclass(frozen=True)
class Panel:
    """One chart: lines of metrics, or phases stacked on each other."""

    key: str
    title: str
    question: str
    unit: str
    series: tuple[Series, ...] = ()
    prefix: str = ""
    """Every metric that begins so is a line too, labelled by the rest of its name."""
    kind: str = "lines"
    """`lines`, or `stack`: one area per series, of one run at a time."""
    reference: float | None = None
    """A value that deserves a line of its own, such as that of chance."""
    is_share: bool = False
    """Whether values are shares of one, shown in per cent."""


def _eval(metric: str, label: str) -> Series:
    return Series(f"eval/{metric}", label, f"eval/{metric}_ci_low", f"eval/{metric}_ci_high")


PHASES = ("rollout", "logprobs", "prm", "advantage", "policy", "weight_sync")
"""Phases of a step, which add up to time/step_s."""
DROPPED = ("too_hard", "too_easy", "truncated", "aborted", "verifier_error")

PANELS: tuple[Panel, ...] = (
    Panel(
        "eval",
        "Held-out accuracy",
        "Does it get better on problems that it is not trained on? The band is the 95 % confidence interval.",
        "right",
        (_eval("accuracy", "accuracy"),),
        is_share=True,
    ),
    Panel(
        "accuracy",
        "Training accuracy",
        "Of all sampled responses, before the filter: the number that measures progress. The training batch stays near "
        "the middle, because the filter chooses it.",
        "right",
        (
            Series("rollout/accuracy_sampled", "all sampled"),
            Series("rollout/accuracy_batch", "training batch"),
        ),
        is_share=True,
    ),
    Panel(
        "prm",
        "PRM accuracy",
        "Does the process reward model prefer right responses? At 50 % it guesses; below, it pays for wrong ones.",
        "right",
        (
            Series("prm/pair_accuracy", "pairs"),
            Series("prm/unseen_pair_accuracy", "pairs, before it learned from them"),
            Series("prm/sign_accuracy", "by sign"),
        ),
        reference=0.5,
        is_share=True,
    ),
    Panel(
        "prm_loss",
        "PRM loss",
        "Cross-entropy on the outcomes before the update; 0.69 is that of a guess.",
        "nats",
        (Series("prm/ce", "cross-entropy"), Series("prm/loss", "loss")),
        reference=0.6931,
    ),
    Panel(
        "credit",
        "Share of process rewards",
        "How much of the advantages' spread comes from single tokens rather than from the outcome?",
        "share",
        (Series("advantage/process_share", "process share"),),
        is_share=True,
    ),
    Panel(
        "probe",
        "PRM on labelled solutions",
        "Does it know where a solution goes wrong (prm.probe)? At 50 % it guesses.",
        "of comparisons",
        (
            Series("probe/step_auroc", "rewards of steps"),
            Series("probe/prefix_auroc", "values of prefixes"),
            Series("probe/planted_accuracy", "planted errors"),
        ),
        reference=0.5,
        is_share=True,
    ),
    Panel(
        "credit_signs",
        "Signs of misleading rewards",
        "Do process rewards stand on the end or the format of a response, or follow its length? High is bad.",
        "share or correlation",
        (
            Series("prm/lowest_on_last_fraction", "lowest at the end"),
            Series("prm/format_share", "on formatting"),
            Series("prm/length_correlation", "with length"),
        ),
    ),
    Panel(
        "turns",
        "Process reward of a turn",
        "Does the PRM tell turns apart? Over the turns of the batch, each with the reply to it.",
        "nats",
        (Series("prm/turn_reward_mean", "mean"), Series("prm/turn_reward_std", "spread")),
    ),
    Panel(
        "replies",
        "Process rewards on replies",
        "How much of the process rewards stands on text that an environment wrote: the evidence after a decision?",
        "of magnitudes",
        (Series("prm/reply_share", "replies"),),
        is_share=True,
    ),
    Panel(
        "kl",
        "KL divergence",
        "How far has the policy moved from the reference, and in one step?",
        "nats/token",
        (Series("policy/ref_kl", "from the reference"), Series("policy/approx_kl", "of one step")),
    ),
    Panel(
        "entropy",
        "Entropy",
        "Does the policy still explore? A fall to zero ends learning.",
        "nats",
        (Series("policy/entropy", "entropy"),),
    ),
    Panel(
        "length",
        "Length of responses",
        "Do responses grow or collapse?",
        "tokens",
        (
            Series("rollout/mean_response_tokens", "sampled"),
            Series("rollout/mean_policy_tokens", "without replies"),
            Series("eval/mean_response_tokens", "held out"),
        ),
    ),
    Panel(
        "dialogue",
        "Turns of a response",
        "Does the policy use its environment, or talk to it without an end?",
        "turns",
        (Series("rollout/mean_turns", "sampled"),),
    ),
    Panel(
        "truncated",
        "Truncated responses",
        "How many responses reach the limit of rollout.max_response_tokens?",
        "truncated",
        (Series("rollout/truncated_fraction", "sampled"), Series("eval/truncated_fraction", "held out")),
        is_share=True,
    ),
    Panel(
        "gap",
        "Train/rollout gap",
        "Do the training engine and the rollout engine agree on log-probs? Large gaps bias the gradient.",
        "nats/token",
        (Series("rollout/logprob_gap", "mean"), Series("rollout/logprob_gap_max", "largest")),
    ),
    Panel(
        "clip",
        "Clipped tokens",
        "How many tokens moved too far within the step for PPO to follow?",
        "of tokens",
        (Series("policy/clip_fraction", "clipped"),),
        is_share=True,
    ),
    Panel(
        "gradient",
        "Gradient norms",
        "Spikes come before instability.",
        "norm",
        (
            Series("policy/grad_norm", "policy"),
            Series("prm/grad_norm", "PRM"),
            Series("sft/grad_norm", "SFT"),
        ),
    ),
    Panel(
        "source",
        "Accuracy by source",
        "On which data does it learn?",
        "right",
        prefix="rollout/accuracy_by_source/",
        is_share=True,
    ),
    Panel(
        "sft",
        "Supervised fine-tuning",
        "Does the loss on held-out demonstrations still fall?",
        "nats/token",
        (Series("sft/loss", "training"), Series("eval/loss", "held out")),
    ),
    Panel(
        "groups",
        "Groups by verdict",
        "How much sampling is spent on problems that are too easy or too hard to learn from?",
        "groups",
        (
            Series("rollout/num_groups_kept", "kept"),
            *(Series(f"rollout/num_groups_dropped_{name}", name.replace("_", " ")) for name in DROPPED),
        ),
        kind="stack",
    ),
    Panel(
        "time",
        "Time of a step",
        "Which phase takes the time?",
        "s",
        (
            *(Series(f"time/{phase}_s", phase.replace("_", " ")) for phase in PHASES),
            Series("time/other_s", "other"),
        ),
        kind="stack",
    ),
    Panel(
        "idle",
        "Idle time",
        "Do the engines and the verifiers wait? Engines with GPUs of their own wait while the policy trains.",
        "of a step",
        (
            Series("time/engine_idle_fraction", "engines"),
            Series("time/environment_idle_fraction", "environments"),
            Series("time/verifier_idle_fraction", "verifiers"),
        ),
        is_share=True,
    ),
    Panel(
        "throughput",
        "Throughput",
        "Response tokens per second of the whole job.",
        "tokens/s",
        (Series("throughput/response_tokens_per_s", "response tokens"),),
    ),
    Panel(
        "memory",
        "Memory",
        "Does memory grow?",
        "GiB",
        (
            Series("memory/peak_rss_gib", "host, peak"),
            Series("memory/rss_gib", "host"),
            Series("memory/host_copies_gib", "offloaded copies"),
        ),
        prefix="memory/device_",
    ),
)
