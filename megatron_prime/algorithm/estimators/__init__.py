"""Advantage estimators, one per module; the module's name is the value of `advantage.estimator`.

A module holds a class `Estimator` that fulfils `algorithm.advantage.AdvantageEstimator`. Adding a file adds a name.

- `rloo`: leave-one-out baselines (Eq. 4 and 5), the default.
- `grpo`: group mean and standard deviation (Eq. 7).
- `reinforce`: no baseline (Eq. 8).
- `gae`: outcomes and values of a critic by generalized advantage estimation, as in PPO.
- `prm_value`: the PRM as value model (Sec. 5.4).
- `prm_gae`: the PRM's probabilities as values of generalized advantage estimation.
- `spro`: outcomes as in grpo, and running sums of rewards compared at the same token (SPRO).
- `istar`: outcomes as in grpo, and rewards of turns by the mean and standard deviation of all turns of the group.
"""
