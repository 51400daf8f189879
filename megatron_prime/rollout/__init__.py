"""Sampling responses from the policy, verifying them, and filtering them into training batches.

Import the modules, not this package: the collector must load without any concrete engine.
"""
