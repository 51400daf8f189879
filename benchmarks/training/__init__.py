"""Training speed compared to the same model in transformers, and the overhead of a step.

- methods: what is compared, in real processes
- collectives: the time that collectives take by themselves
- __main__: runs both, and prints their tables
"""
