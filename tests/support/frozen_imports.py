"""Freeze all objects that exist when this module is imported, which the process that every rank is a fork of does last.

Closing a topology collects garbage. Without this, each collection of a rank walks all objects of torch and Megatron.
"""

import gc

gc.collect()
gc.freeze()
