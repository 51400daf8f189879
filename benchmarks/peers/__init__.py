"""This project and other trainers on the same work, each with its own environment, in alternating runs.

- task: the models, the prompts and the reward that all share
- ours: runs this project
- trl_trainer: runs TRL, in TRL's environment
- trainers: starts the trainers and joins the reports of their processes
- decoding: decoding alone: the embedded engine, transformers and SGLang
- bars: the plots
- report: docs/performance.md from the records
- __main__: builds that environment and carries out the runs
"""
