"""Metrics of evaluations; {set} stands for the prompts that are evaluated."""

from collections.abc import Sequence

from megatron_prime.observability.declared_metrics.rows import Row

EVALUATION: Sequence[Row] = (
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
EVALUATION_OVERALL: Sequence[Row] = (
    ("benchmark_average", "fraction", "Unweighted mean of the accuracies of the benchmarks."),
    ("loss", "nats/token", "Loss on the held-out demonstrations of supervised fine-tuning."),
    (
        "prm_pair_accuracy",
        "fraction",
        "Fraction of the pairs of a right and a wrong response to one held-out prompt that the PRM orders correctly; "
        "0.5 is chance.",
    ),
    ("prm_num_pairs", "count", "Pairs of a right and a wrong response to one held-out prompt."),
    (
        "prm_sign_accuracy",
        "fraction",
        "Fraction of the held-out responses whose score is positive if they are right and negative if they are wrong.",
    ),
    (
        "prm_ce",
        "nats",
        "Mean cross-entropy of the PRM's scores of held-out responses against their outcomes; 0.693 is chance.",
    ),
    ("prm_score_mean", "nats", "Mean score of the held-out responses, the sum of their process rewards."),
)
PROBE: Sequence[Row] = (
    (
        "prefix_auroc",
        "fraction",
        "Chance that the PRM values a prefix without an error, of a solution of prm.probe, higher than one that ends "
        "with the first wrong step; 0.5 is chance.",
    ),
    (
        "step_auroc",
        "fraction",
        "Chance that the PRM rewards a right step more than a first wrong step: what credit of steps depends on.",
    ),
    (
        "solution_auroc",
        "fraction",
        "Chance that the PRM values a solution without an error higher than one with an error.",
    ),
    (
        "lowest_at_error",
        "fraction",
        "Fraction of the solutions with an error whose lowest step reward is that of the first wrong step.",
    ),
    (
        "planted_accuracy",
        "fraction",
        "Fraction of the errors planted into correct solutions after which the PRM values the solution less than after "
        "the original step; everything before is equal. 0.5 is chance.",
    ),
)
PRM_EVALUATION: Sequence[Row] = (
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
