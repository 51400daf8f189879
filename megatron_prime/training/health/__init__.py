"""Watching a run: what goes wrong is skipped, reported, or ends the run with an explanation.

- `guards`: counts updates that are not finite, and stops a run that meets too many in a row.
- `not_finite`: where an update is not finite, by rank and by name.
- `alarms`: spikes and collapses in the history of metrics.
- `mismatch`: the gap between the trainer's and the engine's log-probs.
- `stop`: stopping a run on request, after a checkpoint.
"""
