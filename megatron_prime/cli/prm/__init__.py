"""The commands about a PRM alone.

- `training`: `train-prm`
- `evaluation`: `eval-prm`
- `serving`: `serve-prm`
- `score_requests`: its requests and answers as JSON
"""
