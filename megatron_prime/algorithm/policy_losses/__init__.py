"""Policy losses, one per module; the module's name is the value of `policy.loss`.

A module holds a class `Loss` that fulfils `algorithm.policy_loss.PolicyLoss`. Adding a file adds a name. Engine
correction, entropy bonus, KL and the sum over tokens are common to all and stand in `algorithm.policy_loss`.

- `cispo`: the log-prob, weighted by a clipped ratio without gradient
- `gspo`: the clipped ratio of the whole response
- `ppo_clip`: the clipped probability ratio of PPO, with optional clip-higher and dual clip (Eq. 6), the default.
"""
