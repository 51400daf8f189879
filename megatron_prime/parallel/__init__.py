"""Processes, devices and what crosses between them; the only layer that knows Megatron's parallel_state."""
