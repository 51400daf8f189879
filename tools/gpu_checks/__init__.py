"""The checks of tools/gpu_check.py, a module a subject."""
