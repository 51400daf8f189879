"""Groups of saved responses with outcomes, on which a PRM is trained without a policy.

- `table`: groups of responses in flat buffers
- `logged`: reads the groups of rollout logs
- `text`: reads responses as text
- `held_out`: holds out the responses to some of the prompts
"""
