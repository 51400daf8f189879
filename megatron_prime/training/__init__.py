"""The trainer, its models and its checkpoints."""
