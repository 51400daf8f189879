"""The tables about what a run shows and writes, besides its results.

- `rollout_log`: sampled responses on disk
- `profile`: timelines of chosen steps
- `logging`: services that show metrics
"""
