"""The paper as pure tensor functions: no process group, no model, no framework but torch.

- `advantage`: from outcome and process rewards to advantages; the protocol of an estimator.
- `estimators`: advantage estimators, one per module.
- `policy_loss`: the policy's loss and its options; the protocol of a surrogate.
- `policy_losses`: surrogates, one per module.
- `correction`: weights for batches that another policy sampled; the protocol of an importance ratio.
- `importance_ratios`: ratios of two policies, one per module.
- `prm_loss`: the PRM's loss and metrics; the protocol of an objective.
- `prm_objectives`: objectives of the PRM, one per module.
- `prm_rows`: what an objective sees of a batch, token by token, and what it keeps of it.
- `prm_quality`: signs of a PRM that rewards something else than right steps.
- `prm_pairs`: comparisons within a group, for the pairwise objectives.
- `registry`: from a name in the configuration to an estimator, objective or policy loss.
- `implicit_reward`: the scaled log-ratio of PRM and reference.
- `process_credit`: the rewards that a token, step or turn is credited with.
- `filtering`: the groups that may train.
- `overlong`: the penalty of responses near the length limit.
- `groups`: statistics over the responses to one prompt.
- `tensor_ops`: masked sums, whitening, discounted returns.
- `checks`: errors that several functions raise.

Trainers hold the global batch [B, T] on every rank and pass it whole; losses also take any subset of its
rows, because their weights were fixed beforehand from the whole minibatch. Hence no result depends on ranks,
sharding or microbatches.

Deviations from the paper (arXiv 2502.01456) and from the released code (PRIME-RL/PRIME; "recipe" is verl's
port), and the option that gives each form. The defaults of AdvantageConfig are the released code's; its docstring
names the options of the text.

Process rewards
- Eq. 3 is beta * q_t: reward_scale="beta" (default). The released code returns q_t: reward_scale="raw".
- The recipe zeroes the reward of the last token; here it counts. Not reproducible: it is a bug.
- granularity="token" is the paper; "whole" and "step" exist in the code in part. prime_advantages'
  process_positions_BT makes baselines act on the tokens that carry rewards; None is the released form (all
  tokens).
- process_normalization="none" is the paper. "batch_max" is the code's batch_norm, but over the GLOBAL batch:
  the released code divides by each rank's own maximum, so it agrees with this one on a single rank only.

Baselines and returns
- process_baseline="sequence_sum" is Eq. 5 as printed, "token_mean" as its text says, "released" the code:
  token_mean + (r_t - mean_i)/(G-1). "sequence_spread" is ours: the one form free of the length bias that
  cross-entropy's constant offset brings (see estimators/rloo.py).
- Groups are named by group_ids_B and may be ragged and scattered; the released code needs G contiguous rows.
- The outcome is not discounted in Eq. 5: gamma_outcome=1.0. The code has one gamma per source: gamma_outcome,
  gamma_process; both are 1.0 there, and the recipe has none.
- whitening="none" is the paper, "joint" both codes, "per_source" ours.
- outcome_coef and process_coef reach the advantage. In the released code two such values exist without effect
  (1 : 1); the recipe's 5 : 5 is 1 : 1 after joint whitening.
- process_credit="own" is the paper and both codes. "min" is PURE (arXiv 2504.15275), with a temperature relative to the
  spread of the rewards; process_warmup_steps is ours.
- process_trust="full" is the paper and both codes. "pair_accuracy", ours, scales the process part by the PRM's rank
  correlation with the outcomes of the batch, so that a PRM which rewards other things than right answers has no say.
- estimator="grpo" (Eq. 7) divides by the unbiased standard deviation without an epsilon and gives a constant
  group 0; the paper leaves both open.
- estimator="prm_value" (Sec. 5.4) takes v as a plain sum of the rewards given, in their scale (beta * q after
  reward_scale="beta" and process_normalization="none").
- estimator="prm_gae" with process_credit="td" is ours: lambda returns of probabilities, whose scale is the outcomes'.
- estimator="spro" is arXiv 2507.01551; with prm.source="policy" its rewards are the paper's: those of the policy
  before the update, and no PRM.
- estimator="gae" with prm.loss="value" is the critic of PPO (arXiv 1707.06347). Its value is read from two tokens of
  the output layer, trained on outcomes by cross-entropy, and not clipped.

PRM
- prm.loss="ce" takes logits; the released code takes a sigmoid first and saturates. Soft labels are allowed, as
  there.
- prm.loss="dpo", "bon_acc", "bon_rm" are the recipe's. There other scores come from batch statistics that may mix
  PRMs between minibatch updates, bon_rm ranks by the score during the update, and dpo is a mean while bon is
  a sum; here targets are fixed once before the update (prm_targets), and the caller's weights choose
  mean (1/B) or sum (1).
- prm.loss="ce_intercept", "noisy_and" and "dpo_units" are ours. "ipvrm" is arXiv 2604.13197 without its margin, and
  averaged over the prefixes of a response first. Their modules have the equations.
- Pair accuracy pools pairs over groups and counts ties one half; the recipe averages over groups, gives a
  group without pairs 0.5, and weighs pairs by their label gap (the same thing for labels of 0 and 1).

Text that the policy did not write
- The paper has none. Where an environment replies between turns, response_mask_BT covers all tokens of a response and
  policy_mask_BT those of the policy; both are equal without replies.
- scored_tokens, granularity="turn", process_credit="hindsight" and "observation", and turn rewards of an
  environment are ours.
- estimator="istar" is arXiv 2509.19199: normalized over all turns of a group, with unbiased deviations and 0 for a
  constant group as in grpo. The paper scores its policy's own tokens, against the policy before the update, by "dpo".

Policy loss
- Eq. 6 with clip_low = clip_high = 0.2. dual_clip=3.0 is the recipe's; None (default) the paper's and the
  released code's.
- aggregation "token" is the released code; "sequence" averages each response first, "constant" is Dr. GRPO.
- kl_coef=0 as in the paper. The released code's KL option never reaches the advantage and the recipe loads a
  reference for nothing; here kl_coef adds to the loss.
- clip_high > clip_low, entropy_coef and correction are later additions, off by default. correction weighs the loss by
  the ratio of the policy before the step and the one that sampled, as decoupled PPO does (arXiv 2505.24298), and is on
  by default for stale batches.
- Log-ratios are clamped to +-20 before exp; neither paper nor code says so.

Filtering
- is_in_accuracy_band is the paper's [0.2, 0.8], ends included, in float32.
- A verifier error is NaN and drops its group (is_verified); the released verifier scores errors so that
  they may pass the band.
- Rejected groups never fill a batch: the recipe pads with them, which gives zero outcome but non-zero process
  advantage.
"""
