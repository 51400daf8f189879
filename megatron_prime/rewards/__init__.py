"""Outcome rewards: verifiers by name, and the process pool that runs them.

Importing the package registers the built-in verifiers. It imports no torch, and must not: worker processes import it.
"""

from megatron_prime.rewards import exact_match, user_function
from megatron_prime.rewards.code.verifier import CodeVerifier
from megatron_prime.rewards.math.answer import MathVerifier
from megatron_prime.rewards.pool import VerifierPool
from megatron_prime.rewards.selection import RewardPools
from megatron_prime.rewards.verifier import (
    VerificationOutcome,
    VerificationStatus,
    Verifier,
    get,
    names,
    register,
)

register("exact_match", exact_match.ExactMatch)
register("math", MathVerifier)
register("code", CodeVerifier)
register("function", user_function.UserFunction)

__all__ = [
    "RewardPools",
    "VerificationOutcome",
    "VerificationStatus",
    "Verifier",
    "VerifierPool",
    "get",
    "names",
    "register",
]
