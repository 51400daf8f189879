"""Outcome rewards: verifiers, and the worker processes that run them.

Importing the package registers the built-in verifiers. It must not import torch, because every worker process imports
it.

- `verifier`: protocol of a verifier, and the registry of verifiers by name
- `outcome`: the outcome of a verification, and how outcomes are counted and logged
- `pool`: runs a verifier in worker processes under a deadline
- `worker`: main program of a worker process
- `selection`: builds the verifiers that a configuration names and routes each response to one of them
- `exact_match`: verifier that compares the end of the response with the answer
- `math`: verifier of boxed mathematical answers
- `code`: verifier that runs programs against unit tests in a sandbox
- `user_function`: verifier by a user's Python function
- `remote`: requests to servers that verify, with deadlines, retries and absence
- `http_endpoint`: verifier by a user's HTTP server
- `judge`: verifier by a language model
"""

from megatron_prime.rewards import exact_match, user_function
from megatron_prime.rewards.code.ground_truth import read_tests
from megatron_prime.rewards.code.verifier import CodeVerifier
from megatron_prime.rewards.outcome import VerificationOutcome, VerificationStatus
from megatron_prime.rewards.pool import VerifierPool
from megatron_prime.rewards.selection import RewardPools, answer_check
from megatron_prime.rewards.verifier import Verifier, get, names, register


def _math(accept_unevaluated: bool = False) -> Verifier:
    # Its notations are slow to import, and the checks of a configuration need the names of verifiers alone.
    from megatron_prime.rewards.math.answer import MathVerifier

    return MathVerifier(accept_unevaluated)


def _check_math_answer(answer: str) -> None:
    from megatron_prime.rewards.math.ground_truths import check_ground_truth

    check_ground_truth(answer)


register("exact_match", exact_match.ExactMatch, exact_match.words_of_answer)
register("math", _math, _check_math_answer)
register("code", CodeVerifier, read_tests)
register("function", user_function.UserFunction)

__all__ = [
    "RewardPools",
    "VerificationOutcome",
    "VerificationStatus",
    "Verifier",
    "VerifierPool",
    "answer_check",
    "get",
    "names",
    "register",
]
