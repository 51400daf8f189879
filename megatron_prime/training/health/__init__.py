"""Watching a run: what goes wrong is skipped, reported, or ends the run with an explanation.

- `guards`: counts updates that are not finite, and stops a run that meets too many in a row.
- `not_finite`: where an update is not finite, by rank and by name.
- `alarms`: spikes and collapses in the history of metrics.
- `alarm`: the base of an alarm.
- `credit_alarms`: alarms on process rewards.
- `credit`: metrics of process rewards that mislead.
- `format_tokens`: the tokens that only format a response.
- `mismatch`: the gap between the trainer's and the engine's log-probs.
- `stop`: stopping a run on request, after a checkpoint.
"""
