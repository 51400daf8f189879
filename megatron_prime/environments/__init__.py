"""Environments: what replies to the policy between the turns of a response.

- `protocol`: what an environment is; a user's own implements it
"""
