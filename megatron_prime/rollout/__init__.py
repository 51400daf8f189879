"""Sampling responses from the policy, verifying them, and filtering them into training batches.

Import the modules, not this package: the collector does not depend on any concrete engine.

- `background_verifier`: verification in a thread of one rank
- `collection_stats`: counts and statistics of one step's collection
- `collector`: builds training batches by sampling, verifying and filtering until a batch is full
- `collector_state`: the collector's state that later steps depend on, saved in checkpoints
- `episode`: the protocol of environments, as an engine sees them
- `engine`: the protocol of rollout engines and their errors
- `group_filter`: decides which groups of responses enter a batch
- `held_batch`: a batch that was sampled ahead, and its files in a checkpoint
- `prefix`: the groups of a step in the order of their prompts, and how many to sample ahead
- `prompt_history`: a record of every prompt sampled in a run
- `prompt_queue`: the prompts of a run, with a look ahead of the position that checkpoints hold
- `ranks`: distribution of rollout work over the training ranks
- `replay`: batches from a rollout log instead of an engine
- `sampled_groups`: what became of each sampled group, and the choice of some to log
- `schedules`: when each batch is sampled, and by which version of the policy
- `stream_keys`: keys that select the random numbers of each step and evaluation
- `verification`: verification of rollouts, distributed over the ranks
- `verified_groups`: groups on their way through an engine and a verifier
- `weight_intake`: assembles the blocks of a weight sync into complete tensors
- `weight_sync`: the protocol by which the policy's weights reach an engine
"""
