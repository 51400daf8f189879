"""The names under which servers serve policy versions. A name belongs to one server process and one weight update.

SGLang attaches one string, its `weight_version`, to its weights and states it with every answer. Every update sets a
new random name in the same call that brings the weights, and the trainer accepts a name only after it has proven these
weights. A process that restarts loses its name together with its weights, so a proof cannot outlive its process.
"""

import secrets

from megatron_prime.rollout.engine import NO_WEIGHTS, EngineError

SGLANG_DEFAULT = "default"
"""The name of a server that was started without one."""
_LAUNCHED = "launched-"


class ForeignWeightsError(EngineError):
    """A server has weights that somebody else gave to it; the run must not train on its responses."""


def launch_name() -> str:
    """Return a new name for the weights that a server has when it starts."""
    return f"{_LAUNCHED}{secrets.token_hex(8)}"


class VersionNames:
    """All names that this process gave to weights, and which of them are proven."""

    def __init__(self) -> None:
        self._given: dict[str, tuple[int, int]] = {}
        """Server and policy version by name."""
        self._proven: set[str] = set()
        self._first_seen: dict[int, str] = {}

    def new(self, server: int, policy_version: int) -> str:
        """Return a new name for one update of one server; it counts as no weights until `prove`."""
        name = f"{policy_version}-{secrets.token_hex(8)}"
        self._given[name] = (server, policy_version)
        return name

    def prove(self, name: str) -> None:
        """Accept a name, because the process that states it is proven to hold the weights."""
        assert name in self._given, f"{name} was not given by this process"
        self._proven.add(name)

    def see_first(self, server: int, stated: str) -> None:
        """Record the name that an attached server has before this run gives it one. Later calls do nothing."""
        self._first_seen.setdefault(server, stated)

    def version_of(self, server: int, stated: str) -> int:
        """Return the policy version of the weights that a server states to have.

        NO_WEIGHTS means weights that this run has not proven: those of the server's start or of a failed update.

        Raises:
            ForeignWeightsError: The server has weights of somebody else, or another server answered.
        """
        if stated in self._given:
            owner, policy_version = self._given[stated]
            if owner != server:
                raise ForeignWeightsError(
                    f"SGLang server {server} states the weights {stated!r}, which were given to server {owner}: "
                    "both addresses lead to one server, or a router is in between. Give each server's own address"
                )
            return policy_version if stated in self._proven else NO_WEIGHTS
        is_from_start = stated == SGLANG_DEFAULT or stated.startswith(_LAUNCHED)
        if is_from_start or stated == self._first_seen.get(server):
            return NO_WEIGHTS
        raise ForeignWeightsError(
            f"SGLang server {server} has weights named {stated!r}, which this run did not give to it: somebody else "
            "writes to this server. Its responses are not used. Find out who (another run with the same address in "
            "rollout.sglang.urls, or an intruder), restart the server with an API key, and resume the run"
        )
