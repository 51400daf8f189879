"""Models: Hugging Face to Megatron, forward passes, checkpoints."""
