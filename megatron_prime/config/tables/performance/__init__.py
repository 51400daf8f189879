"""The tables that trade memory, precision and communication for speed.

- `fp8`: FP8 arithmetic of Transformer Engine
- `memory`: offloading and recomputation
- `overlap`: communication beside computation
"""
