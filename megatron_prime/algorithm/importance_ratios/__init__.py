"""Ratios that weigh the policy's loss, one per module; the module's name is the value of `policy.correction`.

A module holds a class `Ratio` that fulfils `algorithm.correction.ImportanceRatio`. Adding a file adds a name. Bounds on
the ratios are common to all and stand in `algorithm.correction`.

- `geometric`: the geometric mean of the ratios of a response's tokens
- `sequence`: the ratio of the whole response
- `token`: the ratio of each token.
"""
