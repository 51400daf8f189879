"""When each batch of a run is sampled, and by which version of the policy.

- `batches`: the protocol of a trainer's source of batches, and the one that samples each batch when it is needed
- `one_step_off`: samples the next batch while the trainer learns from this one
- `continuous`: samples all the time
"""
