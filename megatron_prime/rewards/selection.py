"""From `reward.*` to what verifies: one pool, or several and a route to them by data source and ability."""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, Self

from megatron_prime.config.tables.reward import RewardConfig
from megatron_prime.rewards.http_endpoint import HttpEndpoint
from megatron_prime.rewards.pool import VerifierPool
from megatron_prime.rewards.user_function import FUNCTION
from megatron_prime.rewards.verifier import VerificationOutcome

CODE_MARGIN_S = 30.0
"""Between the limits that the code verifier keeps itself and the kill of its worker."""


class Pool(Protocol):
    """What verifies batches: see `VerifierPool`."""

    @property
    def counts(self) -> dict[str, int]:
        """Outcomes by status, and restarts."""
        ...

    def verify_all(self, responses: Sequence[tuple[str, str]]) -> list[VerificationOutcome]:
        """One outcome a pair of (response text, answer), in order."""
        ...

    def close(self) -> None:
        """End its processes."""
        ...


class RewardPools:
    """All verifiers of a run; each response goes to its prompt's."""

    def __init__(self, reward: RewardConfig) -> None:
        """Start the processes.

        Raises:
            ValueError: a verifier that does not exist, or lacks what it needs.
            RuntimeError: a verifier's process does not start.
        """
        self._reward = reward
        self._pools: dict[str, Pool] = {}
        try:
            for spec in reward.verifiers:
                self._pools[spec] = build_pool(spec, reward)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def counts(self) -> dict[str, int]:
        """Outcomes by status and restarts, over all verifiers."""
        counts: dict[str, int] = {}
        for pool in self._pools.values():
            for name, count in pool.counts.items():
                counts[name] = counts.get(name, 0) + count
        return counts

    def verify_all(self, responses: Sequence[tuple[str, str, str, str]]) -> list[VerificationOutcome]:
        """Verify (response text, answer, data source, ability).

        Returns:
            One outcome a response, in order; the verifiers work side by side.

        Raises:
            ValueError: reward.routes has neither the source nor the ability of a response.
        """
        places: dict[str, list[int]] = {}
        for place, (_, _, source, ability) in enumerate(responses):
            places.setdefault(self._reward.verifier_of(source, ability), []).append(place)
        outcomes: dict[int, VerificationOutcome] = {}
        lock = threading.Lock()

        def verify(spec: str) -> None:
            of_pool = self._pools[spec].verify_all([responses[place][:2] for place in places[spec]])
            with lock:
                outcomes.update(zip(places[spec], of_pool, strict=True))

        with ThreadPoolExecutor(max(1, len(places))) as threads:
            list(threads.map(verify, places))
        return [outcomes[place] for place in range(len(responses))]

    def close(self) -> None:
        """End all processes; harmless when done already."""
        for pool in self._pools.values():
            pool.close()


def build_pool(spec: str, reward: RewardConfig) -> Pool:
    """One verifier: a registered name, an import path, or a URL."""
    if spec.startswith(("http://", "https://")):
        return HttpEndpoint(spec, reward.http)
    settings: dict[str, Any] = {}
    name, timeout_s = spec, reward.timeout_s
    if ":" in spec:
        name, settings = FUNCTION, {"path": spec}
    elif spec == "code":
        settings = reward.code.model_dump(mode="json")
        timeout_s = reward.code.total_timeout_s + reward.code.test_timeout_s + CODE_MARGIN_S
    return VerifierPool(name, reward.num_workers, timeout_s, settings=settings)
