"""The end of a weight sync that runs inside the SGLang servers; the whole package is copied beside each server.

It needs the standard library and torch, nothing else. The trainer imports `signing`, `wire` and `staging` from here as
well, so that both ends of the protocol are written once.

- `changes`: changed elements of tensors, and the messages in which they travel
- `parameters`: views of SGLang's fused parameters by Hugging Face tensor names
- `receiver`: the custom weight loader that SGLang calls
- `serve`: starts SGLang with an API key from the environment
- `signing`: the store in which trainer and receivers meet, with signed values
- `staging`: memory that a training rank and a receiver on the same node share
- `wire`: message layout, process groups and checksums, shared by sender and receiver
"""

from .receiver import receive as receive
