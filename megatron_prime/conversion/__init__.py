"""Whole checkpoints between Hugging Face and Megatron, file by file, in bounded memory and without a process group."""
