"""Metrics of rollouts, prompts, PRM, policy and advantages."""

from collections.abc import Sequence

from megatron_prime.observability.declared_metrics.rows import Row

ROLLOUT: Sequence[Row] = (
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
        "staleness_mean",
        "count",
        "Steps between the weights that sampled a token and those that it trains: the mean over the batch's tokens.",
    ),
    ("staleness_max", "count", "The same: the maximum over the tokens; at most rollout.max_staleness."),
    (
        "num_lost_batches",
        "count",
        "1 if the batch was lost while it was sampled ahead, as without any server left, and was sampled again with "
        "the weights of its step. Only with rollout.max_staleness of 1 or more.",
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
    ("num_prompts_sampled", "count", "Prompts up to the one that filled the batch, kept or dropped."),
    ("num_rollouts_sampled", "count", "Responses to these prompts."),
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
PROMPTS: Sequence[Row] = (
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
PRM: Sequence[Row] = (
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
    (
        "unseen_pair_accuracy",
        "fraction",
        "The pair accuracy before the PRM has learned from the responses, for every prm.update_order. With several "
        "minibatches and prm.update_order = 'before', the pairs are those within a minibatch.",
    ),
    ("unseen_ce", "nats", "The cross-entropy before the PRM has learned from the responses, as above."),
    (
        "score_limit",
        "nats",
        "Mean over the responses of the largest score that any PRM could give them: prm.beta times minus the "
        "reference's log-prob of their tokens, at the first step prm.beta times the entropy of a response. Below 1 the "
        "PRM's loss is nearly a straight line.",
    ),
    (
        "length_correlation",
        "1",
        "Correlation of score and length among responses with the same outcome, in [-1, 1]: the length bias.",
    ),
    (
        "best_is_wrong_fraction",
        "fraction",
        "Fraction of the groups with right and wrong responses in which the response that the PRM values most is "
        "wrong: where PRM and outcome disagree.",
    ),
    ("best_is_wrong_chance", "fraction", "The same for a response chosen at random."),
    (
        "lowest_on_last_fraction",
        "fraction",
        "Fraction of the responses whose lowest process reward is the last one, of a token, step or turn as in "
        "prm.granularity. Near 1 the PRM only repeats the outcome at the end.",
    ),
    ("lowest_on_last_chance", "fraction", "The same for a reward chosen at random."),
    (
        "format_share",
        "fraction",
        "Share of white space, punctuation and special tokens in the magnitudes of the token rewards.",
    ),
    ("format_token_fraction", "fraction", "Share of these tokens in the tokens that the PRM scores."),
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
POLICY: Sequence[Row] = (
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
        "KL divergence of what sampled the batch, an older version or an engine that rounds otherwise, from the "
        "weights that began the step, estimated by k3: the mean of r - 1 - log r over tokens, with r the probability "
        "under these weights over that under what sampled.",
    ),
    (
        "rollout_token_ess",
        "fraction",
        "Kish's effective sample size of the tokens under the ratios r, over their number: 1 if nothing differs.",
    ),
    (
        "rollout_response_ess",
        "fraction",
        "The same of responses under the products of their tokens' ratios r, without any bound.",
    ),
    (
        "entropy",
        "nats/token",
        "Entropy of the policy's next-token distribution, averaged over the tokens that it wrote.",
    ),
    (
        "response_entropy",
        "nats",
        "Sum of the policy's entropies over the tokens that it wrote in a response, averaged over the batch, before "
        "the update. prm.beta should be about 3 to 5 divided by this.",
    ),
    ("policy_loss", "1", "Surrogate loss of the update (policy.loss), averaged over the minibatches."),
    ("ratio_mean", "1", "Mean probability ratio of the updated policy to the weights that began the step."),
    ("clip_fraction", "fraction", "Fraction of the policy's tokens whose ratio the surrogate clipped."),
    (
        "dual_clip_fraction",
        "fraction",
        "Fraction of the policy's tokens whose loss policy.dual_clip bounded.",
    ),
    ("correction_mean", "1", "Mean weight of the policy's tokens by policy.correction."),
    (
        "correction_outside_fraction",
        "fraction",
        "Fraction of the policy's tokens whose ratio was outside of policy.correction_low and correction_high, and "
        "truncated or masked.",
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
ADVANTAGE: Sequence[Row] = (
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
