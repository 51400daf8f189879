"""What gives outcome rewards: verifiers, the sandbox, servers and functions of the user's."""

from typing import Literal, Self

from pydantic import Field, model_validator

from megatron_prime.config.section import NonNegative, Positive, PositiveFloat, Section, UserPath


class CodeConfig(Section):
    """Running model-written code against tests (reward.verifier = "code", or "auto" by way of reward.routes)."""

    sandbox: Literal["bubblewrap", "none-i-accept-the-risk"] = "bubblewrap"
    """none-i-accept-the-risk runs the code with the rights of this user, with limits of time and memory only."""
    test_timeout_s: PositiveFloat = 4.0
    """A test that takes longer is failed."""
    total_timeout_s: PositiveFloat = 20.0
    """Tests of a response that have not begun by then are failed."""
    memory_mib: Positive = 1024
    """Address space of a process, and all memory of a test where cgroups can be made."""
    max_processes: Positive = 16
    """Processes and threads of a test."""
    max_output_mib: Positive = 8
    """A test that prints more is failed."""
    max_disk_mib: Positive = 16
    """Size of the only folder that can be written to, and of each file."""
    max_tests: Positive = 32
    """A problem with more tests is judged by so many of them, spread evenly."""
    partial_credit: bool = True
    """The reward is the fraction of tests passed; false gives 1 for all and else 0, and stops at the first failure."""
    python: UserPath | None = None
    """Interpreter for the code; default the one that runs this program, without its environment's packages."""
    readable_paths: tuple[UserPath, ...] = ()
    """Folders that the code may read besides the system's libraries: packages for it, say."""


class HttpRewardConfig(Section):
    """A reward server (reward.verifier = "http://...")."""

    timeout_s: PositiveFloat = 30.0
    """For one response, all tries together."""
    num_retries: NonNegative = 3
    """Further tries after a failed connection, 429 or 5xx."""
    max_concurrency: Positive = 32
    """Requests under way at one time, of each training process."""
    token_variable: str | None = None
    """Environment variable with a bearer token."""


class RewardConfig(Section):
    """The outcome verifier."""

    verifier: str = "math"
    """exact_match, math, code, a function as package.module:function, a reward server by URL, or auto: by routes."""
    num_workers: Positive = 1
    """Verifier processes a training process."""
    timeout_s: PositiveFloat = 2.0
    """A verification that takes longer is killed and counted; code has limits of its own."""
    code: CodeConfig = CodeConfig()
    http: HttpRewardConfig = HttpRewardConfig()
    routes: dict[str, str] = Field(default={"math": "math", "code": "code"})
    """For verifier = "auto": data source or, where that is not named, ability -> verifier."""

    @property
    def verifiers(self) -> tuple[str, ...]:
        """All that may be asked, each once."""
        return (self.verifier,) if self.verifier != "auto" else tuple(dict.fromkeys(self.routes.values()))

    def verifier_of(self, source: str, ability: str) -> str:
        """The verifier of a prompt.

        Raises:
            ValueError: auto, and routes has neither its source nor its ability.
        """
        if self.verifier != "auto":
            return self.verifier
        spec = self.routes.get(source) or self.routes.get(ability)
        if spec is None:
            raise ValueError(
                f"reward.verifier = 'auto', but reward.routes has neither the source {source!r} nor the ability "
                f"{ability!r} of a prompt: it has {sorted(self.routes)}"
            )
        return spec

    @model_validator(mode="after")
    def _check_routes(self) -> Self:
        if self.verifier == "auto" and not self.routes:
            raise ValueError("verifier = 'auto' needs reward.routes")
        if "auto" in self.routes.values():
            raise ValueError("routes lead to a verifier, not to 'auto'")
        return self
