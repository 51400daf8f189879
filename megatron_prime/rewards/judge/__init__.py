"""Verification by a language model: `reward.verifier = "judge"`.

- `verifier`: asks the model, by an OpenAI-compatible server, and takes the mean of its votes
- `template`: writes the request, in which a response stays data
- `replies`: replies on disk, by the content of the request
"""
