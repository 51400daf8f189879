"""A comparison of methods of credit, by runs of the product on small tasks with many seeds.

- `chain`: the environment of most tasks
- `tasks`: the tasks, with their data and models
- `methods`: the methods, and the seeds
- `demonstrations`: the demonstrations of a task with their outcomes, for `train-prm`
- `runs`: carries out runs in processes forked from one server
- `localisation`: how well advantages tell right steps from wrong ones
- `records`: what is kept of a run
- `analysis`: thresholds, ratios and their intervals
- `plots`: curves as SVG
- `page`: docs/learning.md
"""
