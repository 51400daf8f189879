"""The commands about a PRM alone.

- `training`: `train-prm`
- `evaluation`: `eval-prm`
"""
