"""Builds the verifiers that `[reward]` names, and routes each response to one by data source and ability."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, Self

from megatron_prime.config.tables.reward import JUDGE, RewardConfig
from megatron_prime.rewards.outcome import VerificationOutcome
from megatron_prime.rewards.pool import VerifierPool
from megatron_prime.rewards.user_function import FUNCTION
from megatron_prime.rewards.verifier import check_answer
from megatron_prime.sample import Sample

CERTAIN_VERIFIERS = ("exact_match", "math")
"""Verifiers that give the response of `sample_response` the reward 1. They run safely in any process."""
CODE_MARGIN_S = 30.0
"""Seconds between the time limit that the code verifier keeps itself and the kill of its worker."""


def sample_response(spec: str, answer: str) -> str:
    """Return a right response for a ground truth; for code, a program that does nothing."""
    if spec == "code":
        return "```python\npass\n```"
    if spec == "exact_match":
        return answer
    # A user's function may look for the tags of a reasoning model.
    tags = f"<think>\n\n</think>\n\n<answer>{answer}</answer>\n" if ":" in spec else ""
    return f"{tags}The answer is \\boxed{{{answer}}}"


def answer_check(reward: RewardConfig) -> Callable[[str, str, str], None]:
    """Return a function of (data source, ability, ground truth) that raises ValueError if no verifier can use that.

    Whether the source or ability has a verifier at all is not its matter: that is no fault of a row.
    """

    def check(source: str, ability: str, answer: str) -> None:
        try:
            spec = reward.verifier_of(source, ability)
        except ValueError:
            return
        try:
            check_answer(spec, answer)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"the verifier {spec!r} cannot use the answer: {error}") from error

    return check


class Pool(Protocol):
    """A verifier of batches of responses, such as `VerifierPool`, which threads may share."""

    @property
    def counts(self) -> dict[str, int]:
        """Number of outcomes by status, and of restarts."""
        ...

    def verify_all(self, samples: Sequence[Sample]) -> list[VerificationOutcome]:
        """Return one outcome per response, in order."""
        ...

    def close(self) -> None:
        """Stop all processes."""
        ...


class RewardPools:
    """All verifiers of a run; each response is verified by that of its data source or ability. Threads may share it."""

    def __init__(self, reward: RewardConfig) -> None:
        """Start the processes.

        Raises:
            ValueError: If a verifier does not exist or one of its requirements is missing.
            RuntimeError: If a process of a verifier does not start.
        """
        self._reward = reward
        self._pools: dict[str, Pool] = {}
        try:
            for spec in reward.verifiers:
                self._pools[spec] = build_pool(spec, reward)
        except BaseException:
            self.close()  # the verifiers before the failing one have started processes
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def counts(self) -> dict[str, int]:
        """Number of outcomes by status and of restarts, over all verifiers."""
        counts: dict[str, int] = {}
        for pool in self._pools.values():
            for name, count in pool.counts.items():
                counts[name] = counts.get(name, 0) + count
        return counts

    def verify_all(self, samples: Sequence[Sample]) -> list[VerificationOutcome]:
        """Verify responses; the verifiers run concurrently.

        Returns:
            One outcome per response, in order.

        Raises:
            ValueError: If reward.routes has neither the source nor the ability of a response.
        """
        indices: dict[str, list[int]] = {}
        for index, sample in enumerate(samples):
            indices.setdefault(self._reward.verifier_of(sample.source, sample.ability), []).append(index)
        outcomes: dict[int, VerificationOutcome] = {}
        lock = threading.Lock()

        def verify(spec: str) -> None:
            pool_outcomes = self._pools[spec].verify_all([samples[index] for index in indices[spec]])
            with lock:
                outcomes.update(zip(indices[spec], pool_outcomes, strict=True))

        with ThreadPoolExecutor(max(1, len(indices))) as threads:
            try:
                list(threads.map(verify, indices))
            except KeyboardInterrupt:
                # Leaving the block waits for the threads, which would judge the rest of the batch first.
                self.close()
                raise
        return [outcomes[index] for index in range(len(samples))]

    def close(self) -> None:
        """Stop all processes; a second call does nothing."""
        for pool in self._pools.values():
            pool.close()


def build_pool(spec: str, reward: RewardConfig) -> Pool:
    """Build the verifier that `spec` names: a registered name, an import path, or a URL."""
    if spec.startswith(("http://", "https://")):
        # httpx is slow to import, and the checks of a configuration import this module.
        from megatron_prime.rewards.http_endpoint import HttpEndpoint

        return HttpEndpoint(spec, reward.http)
    if spec == JUDGE:
        from megatron_prime.rewards.judge.verifier import Judge

        return Judge(reward.judge)
    settings: dict[str, Any] = {}
    name, timeout_s = spec, reward.timeout_s
    if ":" in spec:
        name, settings = FUNCTION, {"path": spec}
    elif spec == "math":
        settings = reward.math.model_dump(mode="json")
    elif spec == "code":
        settings = reward.code.model_dump(mode="json")
        # The code verifier checks its total before each test and leaves out the time that a sandbox takes to start,
        # which is why the pool's deadline is later: it would turn a reward of 0 into an error.
        timeout_s = reward.code.total_timeout_s + reward.code.test_timeout_s + CODE_MARGIN_S
    return VerifierPool(name, reward.num_workers, timeout_s, settings=settings)
