"""This project and other trainers on the same work, each with its own environment, in alternating runs.

- task: the models, the prompts and the reward that all share
- ours: runs this project
- trl_trainer: runs TRL, in TRL's environment
- bars: the plot
- report: docs/performance.md from the records
- __main__: builds that environment, carries out the runs and prints their table
"""
