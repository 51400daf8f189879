"""A comparison of the schedules of sampling and training: measured on two cores, and simulated for 70B on 128 GPUs.

Measured:

- `measure`: runs of the product with an SGLang server on a core of its own
- `task`: what they learn, with responses of heavy-tailed lengths
- `slow_verifier`: judges it, in its own time
- `watched_run`: notes when servers have requests
- `report`: figures and tables of the runs
- `curves`: learning curves on-policy and one step off

Simulated:

- `clock`: simulated time
- `servers`: simulated servers and verifiers
- `fleet`: groups of responses on them
- `schedules`: rounds, streaming, one step off and continuous sampling, as simulated processes
- `lengths`: a published distribution of response lengths
- `seventy`: the simulation of 70B on 128 GPUs
"""
