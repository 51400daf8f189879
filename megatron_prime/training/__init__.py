"""Training: Algorithm 1, the models it trains, and everything that keeps a long run going.

- `trainer`: one step of Algorithm 1.
- `loop`: steps with evaluations, checkpoints and logs around them.
- `trainable`: a model in a role; `Scorer` scores, `Trainable` also learns.
- `roles`: policy, PRM and reference of a run, built from its configuration.
- `rollout_recorder`: takes what a step samples and computes, for the rollout log.
- `rollout_rows`: sampled responses as rows of a rollout log.
- `prm_phase`: the order of scoring and updating the PRM.
- `process_rewards`: the process rewards of a batch, as recorded and as credited.
- `minibatches`: the optimizer steps of one role on a batch.
- `losses`: the algorithm's losses in the form of the packed backward pass.
- `residency`: offloading of weights, gradients and optimizer states to host memory.
- `same_alignment`: weights of two models aligned alike, so that the same kernels multiply them.
- `turn_metrics`: process rewards of turns and of the replies of an environment.
- `step_details`: histograms and sample responses for loggers.
- `phase_memory`: time and memory of each phase of a step.
- `step_profiler`: timelines of chosen steps.
- `offline_prm`: training of the PRM on saved responses
- `sft`: supervised warm-up of the policy.
- `checkpoint`: checkpoints, exact resume, one job per run_dir.
- `health`: updates that are not finite, alarms, stopping on request.
"""
