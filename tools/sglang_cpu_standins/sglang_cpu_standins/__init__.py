"""Adaptations that unmodified SGLang needs on a machine without a GPU."""
