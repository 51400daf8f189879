"""Rollout engines, which sample responses from the policy, and the weight syncs that belong to them.

Each kind of engine has a folder with a `build` module; `cli.assemble` maps the value of rollout.engine to it.

- `conversation`: a response while it grows, with its budgets
- `dialogue`: a conversation with an environment, begun again where the environment fails
- `local`: the embedded engine, a transformers model in every training process
- `parts`: the parts that every kind of engine provides to a run
- `replay`: takes the place of an engine where logged rollouts are trained on
- `requests`: random streams of responses, and checks of requests
- `sglang`: SGLang servers beside or apart from the training processes
"""
