"""A comparison of the schedules of sampling and training: measured on two cores, and simulated for 70B on 128 GPUs.

- `clock`: simulated time
- `servers`: simulated servers and verifiers
- `fleet`: groups of responses on them
- `schedules`: rounds, streaming, one step off and continuous sampling, as simulated processes
- `lengths`: a published distribution of response lengths
- `seventy`: the simulation of 70B on 128 GPUs
"""
