"""The one declaration of everything that a run logs: tag, kind, unit and description.

TensorBoard, Weights & Biases, MLflow, the viewer and the reference of the documentation read it. A part of a tag in
angle brackets, as in `eval/<benchmark>/accuracy`, stands for a name that the run chooses.
"""

import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["scalar", "histogram", "text"]
Unit = Literal[
    "fraction",
    "count",
    "tokens",
    "tokens/s",
    "nats",
    "nats/token",
    "reward",
    "s",
    "GiB",
    "0 or 1",
    "1",
    "text",
]
"""`fraction` is in [0, 1]; `1` is a number without a unit; `reward` is in units of the outcome, which is in [0, 1]."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A declared tag."""

    tag: str
    """`group/quantity`; a part in angle brackets stands for any name."""
    unit: Unit
    description: str
    """Says in full sentences what the value is, and how it was averaged."""
    kind: Kind = "scalar"

    @property
    def group(self) -> str:
        """The part of the tag before the first slash."""
        return self.tag.partition("/")[0]

    @property
    def documentation(self) -> str:
        """The description with the unit, as loggers show it."""
        return f"{self.description} Unit: {_UNIT_TEXTS.get(self.unit, self.unit)}."

    def covers(self, name: str) -> bool:
        """Return whether this is the declaration of a logged name."""
        return _pattern(self.tag).fullmatch(name) is not None


_UNIT_TEXTS = {
    "fraction": "fraction in [0, 1]",
    "1": "none (a plain number)",
    "0 or 1": "0 or 1",
    "reward": "outcome reward, in [0, 1]",
    "nats/token": "nats per response token",
    "tokens/s": "tokens per second",
}
_NAME_PATTERNS = {"<source>": r"\S[^\n]*", "<k>": r"\d+", "<N>": r"\d+"}
"""Placeholders with a form of their own: a data source has any name, which may contain slashes."""


@functools.cache
def _pattern(tag: str) -> re.Pattern[str]:
    parts = re.split(r"(<\w+>)", tag)
    return re.compile(
        "".join(
            _NAME_PATTERNS.get(part, r"[^/\n]+") if part.startswith("<") else re.escape(part)
            for part in parts
        )
    )


def described_metrics() -> tuple[Metric, ...]:
    """Return every declared metric, in the order in which a reader meets them; no tag occurs twice."""
    return _METRICS


@functools.cache
def metric_of(name: str) -> Metric | None:
    """Return the declaration of a logged name; None for an unknown one, as of a user's own policy loss."""
    # The declaration with the longest literal text is the most specific one.
    covering = [metric for metric in described_metrics() if metric.covers(name)]
    return max(covering, key=lambda metric: len(re.sub(r"<\w+>", "", metric.tag)), default=None)


def description_of(name: str) -> str:
    """Return the description and the unit of a logged name; "" for an unknown one."""
    metric = metric_of(name)
    return "" if metric is None else metric.documentation


_Row = tuple[str, Unit, str] | tuple[str, Unit, str, Kind]

_ROLLOUT: Sequence[_Row] = (
    (
        "accuracy_sampled",
        "fraction",
        "Mean outcome reward of all responses sampled for the step, before the filter and without verifier errors: the "
        "number that measures progress between evaluations.",
    ),
    (
        "accuracy_batch",
        "fraction",
        "Mean outcome reward of the responses in the training batch. The filter chooses groups of medium accuracy, so "
        "it hardly changes during a run.",
    ),
    (
        "accuracy_by_source/<source>",
        "fraction",
        "Mean outcome reward of all responses sampled from one data source, before the filter.",
    ),
    ("mean_response_tokens", "tokens", "Mean length of all sampled responses."),
    (
        "truncated_fraction",
        "fraction",
        "Fraction of all sampled responses that were truncated at rollout.max_response_tokens.",
    ),
    (
        "policy_version",
        "count",
        "Number of weight syncs before the weights that sampled the batch: the minimum over it.",
    ),
    (
        "logprob_gap",
        "nats/token",
        "Mean absolute difference between the log-probs of the training engine and of the rollout engine.",
    ),
    (
        "logprob_gap_max",
        "nats/token",
        "Largest absolute difference between the log-probs of the training engine and of the rollout engine.",
    ),
    ("num_rounds", "count", "Sampling rounds until the batch was full."),
    ("num_prompts_sampled", "count", "Prompts sampled in the step, kept or dropped."),
    ("num_rollouts_sampled", "count", "Responses sampled in the step, kept or dropped."),
    ("num_groups_kept", "count", "Groups in the training batch."),
    (
        "num_groups_dropped_too_hard",
        "count",
        "Groups dropped because their accuracy is below filter.accuracy_min.",
    ),
    (
        "num_groups_dropped_too_easy",
        "count",
        "Groups dropped because their accuracy is above filter.accuracy_max.",
    ),
    ("num_groups_dropped_truncated", "count", "Groups dropped because of filter.max_truncated_fraction."),
    (
        "num_groups_dropped_verifier_error",
        "count",
        "Groups dropped because the verifier failed on a response.",
    ),
    ("num_groups_dropped_aborted", "count", "Groups dropped because the engine did not finish a response."),
    ("num_groups_surplus", "count", "Groups that passed the filter when the batch was already full."),
    (
        "num_groups_trimmed",
        "count",
        "Groups that passed the filter and were left out to make the batch divisible.",
    ),
    ("num_verifier_errors", "count", "Responses on which the verifier failed."),
    ("mean_turns", "count", "Mean number of turns of all sampled responses to environments."),
    (
        "mean_policy_tokens",
        "tokens",
        "Mean number of tokens that the policy wrote in a response to an environment, without those of the replies.",
    ),
    (
        "num_failed_episodes",
        "count",
        "Environments that failed or ran out of time. Each cost an attempt at a response.",
    ),
    (
        "num_masked",
        "count",
        "Truncated responses of the batch that are not trained on (filter.overlong = 'mask').",
    ),
    (
        "mean_overlong_penalty",
        "reward",
        "Mean penalty of overlong responses, at most 0 (filter.overlong_buffer_tokens).",
    ),
    ("response_tokens", "tokens", "Lengths of the responses in the training batch.", "histogram"),
    (
        "logprob_difference",
        "nats/token",
        "Log-prob of the training engine minus that of the rollout engine, of sampled response tokens: at 0 where both "
        "engines compute the same.",
        "histogram",
    ),
    (
        "samples",
        "text",
        "A few responses of the step with prompt and verdict, shortened. The rollout log has all of them.",
        "text",
    ),
)
_PROMPTS: Sequence[_Row] = (
    ("num_seen", "count", "Different training prompts sampled so far."),
    ("mean_times_sampled", "1", "Mean number of times that a sampled training prompt was sampled so far."),
    (
        "always_right_fraction",
        "fraction",
        "Fraction of the verified prompts whose responses were all right so far.",
    ),
    (
        "always_wrong_fraction",
        "fraction",
        "Fraction of the verified prompts whose responses were all wrong so far.",
    ),
)
_PRM: Sequence[_Row] = (
    (
        "pair_accuracy",
        "fraction",
        "Fraction of the pairs of a right and a wrong response to one prompt in which the right one has the larger sum "
        "of process rewards: 0.5 is chance, and below it the PRM pays for wrong responses.",
    ),
    ("num_pairs", "count", "Pairs of a right and a wrong response to one prompt in the batch."),
    (
        "sign_accuracy",
        "fraction",
        "Fraction of the responses whose score is positive if they are right and negative if they are wrong; 0.5 is "
        "chance.",
    ),
    ("ce", "nats", "Mean cross-entropy of the scores against the outcomes of the batch; 0.693 is chance."),
    ("score_mean", "nats", "Mean score of the responses, the sum of their process rewards."),
    ("loss", "nats", "Loss of the PRM's update (prm.loss), averaged over its minibatches."),
    ("grad_norm", "1", "Norm of the PRM's gradient before clipping, averaged over its minibatches."),
    ("lr", "1", "Learning rate of the PRM's update."),
    (
        "process_reward_mean",
        "nats/token",
        "Mean process reward of the tokens of the batch that the PRM scores.",
    ),
    ("process_reward_max_abs", "nats/token", "Largest magnitude of a process reward of the batch."),
    (
        "turn_reward_mean",
        "nats",
        "Mean over the turns of the batch of their process rewards, each the sum over the turn and the reply to it.",
    ),
    ("turn_reward_std", "nats", "Standard deviation of the process rewards of the turns of the batch."),
    (
        "reply_share",
        "fraction",
        "Share of an environment's replies in the magnitudes of the process rewards of all tokens of the batch.",
    ),
    (
        "process_rewards",
        "nats/token",
        "Process rewards of sampled tokens of the policy: beta times the log-ratio of PRM and reference.",
        "histogram",
    ),
)
_POLICY: Sequence[_Row] = (
    (
        "ref_kl",
        "nats/token",
        "KL divergence of the policy from the reference (policy.kl_estimator), averaged over the minibatches.",
    ),
    (
        "approx_kl",
        "nats/token",
        "Estimate of the KL divergence of the policy from the weights that began the step: the size of its update.",
    ),
    (
        "rollout_kl",
        "nats/token",
        "Mean log-prob of the rollout engine minus that of the weights that began the step.",
    ),
    (
        "entropy",
        "nats/token",
        "Entropy of the policy's next-token distribution, averaged over the tokens that it wrote.",
    ),
    ("policy_loss", "1", "Surrogate loss of the update (policy.loss), averaged over the minibatches."),
    ("ratio_mean", "1", "Mean probability ratio of the updated policy to the weights that began the step."),
    ("clip_fraction", "fraction", "Fraction of the policy's tokens whose ratio the surrogate clipped."),
    (
        "dual_clip_fraction",
        "fraction",
        "Fraction of the policy's tokens whose loss policy.dual_clip bounded.",
    ),
    (
        "tis_mean",
        "1",
        "Mean weight that corrects for the rollout engine's log-probs, truncated at policy.tis_cap.",
    ),
    (
        "tis_clip_fraction",
        "fraction",
        "Fraction of the policy's tokens whose weight policy.tis_cap truncated.",
    ),
    ("grad_norm", "1", "Norm of the policy's gradient before clipping, averaged over the minibatches."),
    ("lr", "1", "Learning rate of the policy's update."),
    (
        "ref_log_ratio",
        "nats/token",
        "Log-prob of the policy before the update minus that of the reference, of sampled tokens that it wrote.",
        "histogram",
    ),
)
_ADVANTAGE: Sequence[_Row] = (
    ("mean", "1", "Mean advantage of the policy's tokens of the batch."),
    ("std", "1", "Standard deviation of the advantages of the policy's tokens of the batch."),
    (
        "process_share",
        "fraction",
        "Share of the process rewards in the advantages: the standard deviation of their part over the sum of the "
        "standard deviations of both parts.",
    ),
    ("tokens", "1", "Advantages of sampled tokens of the policy.", "histogram"),
)
_EVALUATION: Sequence[_Row] = (
    (
        "accuracy",
        "fraction",
        "Mean outcome reward of all responses to {set} (avg@k); a verifier error counts as 0.",
    ),
    ("accuracy_ci_low", "fraction", "Lower bound of the confidence interval of the accuracy on {set}."),
    ("accuracy_ci_high", "fraction", "Upper bound of the confidence interval of the accuracy on {set}."),
    ("pass_at_<k>", "fraction", "Probability that one of k responses to a problem of {set} is right."),
    ("pass_at_<k>_ci_low", "fraction", "Lower bound of the confidence interval of pass@k on {set}."),
    ("pass_at_<k>_ci_high", "fraction", "Upper bound of the confidence interval of pass@k on {set}."),
    ("accuracy_by_source/<source>", "fraction", "Accuracy on the problems of {set} from one data source."),
    ("truncated_fraction", "fraction", "Fraction of the responses to {set} that were truncated."),
    ("mean_response_tokens", "tokens", "Mean length of the responses to {set}."),
    ("num_prompts", "count", "Problems of {set} that were evaluated."),
    ("samples_per_prompt", "count", "Responses to each problem of {set}."),
    ("num_correct", "count", "Right responses to {set}."),
    ("num_verifier_errors", "count", "Responses to {set} on which the verifier failed."),
)
_EVALUATION_OVERALL: Sequence[_Row] = (
    ("benchmark_average", "fraction", "Unweighted mean of the accuracies of the benchmarks."),
    ("loss", "nats/token", "Loss on the held-out demonstrations of supervised fine-tuning."),
)
_PRM_EVALUATION: Sequence[_Row] = (
    *(
        (f"<set>/{method}@<N>", "fraction", f"Accuracy of {how} among the first N responses to a problem.")
        for method, how in {
            "avg": "a random choice",
            "pass": "an ideal choice",
            "majority": "the most frequent answer",
            "weighted_vote": "the answer with the most votes, weighted by the PRM's scores,",
            "best_min": "the response with the highest minimum of its step scores",
            "best_sum": "the response with the highest sum of its step scores",
            "best_last": "the response with the highest last step score",
        }.items()
    ),
    ("<set>/pair_accuracy", "fraction", "Fraction of the pairs in which the PRM prefers the right response."),
    ("<set>/num_pairs", "count", "Pairs of responses that were compared."),
    ("processbench/<split>/erroneous", "fraction", "Erroneous solutions whose first wrong step was found."),
    ("processbench/<split>/correct", "fraction", "Correct solutions in which no error was found."),
    (
        "processbench/<split>/f1",
        "fraction",
        "Harmonic mean of the accuracies on erroneous and correct solutions.",
    ),
    ("processbench/<split>/num_solutions", "count", "Solutions of a split of ProcessBench."),
    ("processbench/<split>/num_correct", "count", "Solutions of a split of ProcessBench without an error."),
    ("processbench/f1", "fraction", "Mean F1 over the splits of ProcessBench."),
    (
        "processbench/threshold",
        "fraction",
        "Probability, as the logistic function of the step score, below which a step counts as wrong.",
    ),
)
_GUARDS: Sequence[_Row] = (
    ("num_skipped_updates", "count", "Updates of the step that were skipped because they were not finite."),
    (
        "num_skipped_in_all",
        "count",
        "Updates of the whole run that were skipped because they were not finite.",
    ),
    ("spike_alarm", "0 or 1", "1 while one of guards.spike_metrics is far above its recent values."),
    ("reward_alarm", "0 or 1", "1 while rollout/accuracy_sampled is far below its best level."),
    ("entropy_alarm", "0 or 1", "1 while policy/entropy is far below its best level."),
    (
        "truncation_alarm",
        "0 or 1",
        "1 while too many responses are truncated (guards.max_truncated_fraction).",
    ),
    ("ref_kl_alarm", "0 or 1", "1 while the policy is too far from the reference (guards.max_ref_kl)."),
    (
        "gap_alarm",
        "0 or 1",
        "1 while rollout/logprob_gap is too large or has jumped (guards.max_logprob_gap).",
    ),
    (
        "process_alarm",
        "0 or 1",
        "1 while large process rewards prefer wrong responses (guards.min_pair_accuracy).",
    ),
)
_SFT: Sequence[_Row] = (
    ("loss", "nats/token", "Loss of the step's demonstrations before the update."),
    ("grad_norm", "1", "Norm of the gradient before clipping."),
    ("lr", "1", "Learning rate of the update."),
    ("num_tokens", "tokens", "Response tokens of the step's demonstrations."),
)
_THROUGHPUT: Sequence[_Row] = (
    (
        "response_tokens_per_s",
        "tokens/s",
        "Response tokens of the training batch, an environment's included, over the time of the step.",
    ),
    (
        "environment_wait_s",
        "s",
        "Mean time that a response of the training batch waited for its environment; others are sampled meanwhile.",
    ),
)
_TIME: Sequence[_Row] = (
    ("step_s", "s", "Time of the whole step, without evaluation and checkpoints."),
    ("weight_sync_s", "s", "Time until every server serves the new weights."),
    ("rollout_s", "s", "Time of sampling, verification and filtering."),
    ("logprobs_s", "s", "Time of the log-probs of the policy before its update, and of the reference."),
    ("prm_s", "s", "Time of scoring and updating the PRM."),
    ("advantage_s", "s", "Time of the advantages."),
    ("policy_s", "s", "Time of the policy's update."),
    (
        "rollout_log_s",
        "s",
        "Time that training waits for sampled responses to be written to run_dir/rollouts.",
    ),
    ("evaluation_s", "s", "Time of the evaluation after the step."),
    (
        "<phase>_fraction",
        "fraction",
        "Share of a phase in the time of the step; `other` is what no phase covers.",
    ),
    (
        "engine_idle_fraction",
        "fraction",
        "Share of the step in which an engine samples nothing: the mean over the SGLang servers, or that of rank 0's "
        "embedded engine. Servers that share GPUs with training are idle while it uses them.",
    ),
    (
        "environment_idle_fraction",
        "fraction",
        "Share of the step in which no environment replies, on rank 0.",
    ),
    (
        "verifier_idle_fraction",
        "fraction",
        "Share of the step in which a verifier judges no response: the mean over the verifiers, on rank 0.",
    ),
)
_MEMORY: Sequence[_Row] = (
    ("rss_gib", "GiB", "Memory of the process on rank 0."),
    ("peak_rss_gib", "GiB", "Largest memory of the process on rank 0 so far."),
    ("device_<statistic>_gib", "GiB", "Memory of the device of rank 0, by the statistics of its allocator."),
    (
        "<phase>/<role>_gib",
        "GiB",
        "Most memory of weights, gradients and optimizer states of a role in a phase.",
    ),
    ("<phase>/device_peak_gib", "GiB", "Peak memory of the GPU of rank 0 in a phase."),
    ("host_copies_gib", "GiB", "Host memory that holds offloaded parts."),
)
_RUN: Sequence[_Row] = (
    ("provenance", "text", "Versions, commit, machine and command of each attempt of the run.", "text"),
    ("config", "text", "The resolved configuration of the run.", "text"),
)


def _all_metrics() -> Iterator[Metric]:
    groups: dict[str, Sequence[_Row]] = {
        "rollout": _ROLLOUT,
        "prompts": _PROMPTS,
        "prm": _PRM,
        "policy": _POLICY,
        "advantage": _ADVANTAGE,
        "eval": [(tag, unit, text.format(set="the held-out prompts")) for tag, unit, text, *_ in _EVALUATION],
        "eval/<benchmark>": [
            (tag, unit, text.format(set="a benchmark")) for tag, unit, text, *_ in _EVALUATION
        ],
        "prm_eval": _PRM_EVALUATION,
        "guards": _GUARDS,
        "sft": _SFT,
        "throughput": _THROUGHPUT,
        "time": _TIME,
        "memory": _MEMORY,
        "run": _RUN,
    }
    for group, rows in groups.items():
        for tag, unit, description, *kind in rows:
            yield Metric(f"{group}/{tag}", unit, description, *kind)  # type: ignore[arg-type]
        if group == "eval":
            for tag, unit, description, *_ in _EVALUATION_OVERALL:
                yield Metric(f"{group}/{tag}", unit, description)


_METRICS = tuple(_all_metrics())
