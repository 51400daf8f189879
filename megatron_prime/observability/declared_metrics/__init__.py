"""The declarations of `observability.catalog`, as rows of tag, unit, description and kind.

- `rows`: the types of a row
- `learning`: rollouts, prompts, PRM, policy and advantages
- `evaluation`: evaluations of the policy and of a PRM
- `running`: guards, supervised fine-tuning, throughput, weight syncs, time and memory
"""
