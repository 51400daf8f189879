"""The [reward] table: verifiers, the sandbox for code, reward servers and user functions."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from megatron_prime.config.redaction import Address
from megatron_prime.config.section import (
    NonNegative,
    NonNegativeFloat,
    Positive,
    PositiveFloat,
    Section,
    UserPath,
)

JUDGE = "judge"
"""Name of the verifier that asks a language model."""
SampleField = Literal["source", "ability", "messages", "metadata", "response_ids", "finish_reason", "turns"]
"""A field of `Sample` besides the texts."""


class CodeConfig(Section):
    """Execution of model-written code against tests (reward.verifier = "code", or "auto" with a route to it)."""

    sandbox: Literal["bubblewrap", "none-i-accept-the-risk"] = "bubblewrap"
    """bubblewrap isolates the code from files and network; none-i-accept-the-risk runs it with the rights of this user
    and limits only time and memory."""
    test_timeout_s: PositiveFloat = 4.0
    """Time limit of one test in seconds; a test that takes longer fails."""
    total_timeout_s: PositiveFloat = 20.0
    """Time limit of all tests of a response in seconds; tests that have not begun by then fail."""
    memory_mib: Positive = 1024
    """Limit of the address space of each process, and of all memory of a test where cgroups can be created, in MiB."""
    max_processes: Positive = 16
    """Maximum number of processes and threads per test."""
    max_output_mib: Positive = 8
    """Maximum output of a test in MiB; a test that prints more fails."""
    max_disk_mib: Positive = 16
    """Size, in MiB, of the only writable folder and maximum size of each file."""
    max_tests: Positive = 32
    """Maximum number of tests per problem; of more tests, this many are used, spread evenly."""
    partial_credit: bool = True
    """true rewards the fraction of passed tests; false gives 1 if all pass, else 0, and stops at the first failure."""
    python: UserPath | None = None
    """Python interpreter for the code; default the one of this program, without the packages of its environment."""
    readable_paths: tuple[UserPath, ...] = ()
    """Folders that the code may read besides the system's libraries, such as packages that it may import."""


class MathConfig(Section):
    """Comparison of mathematical answers (reward.verifier = "math", or "auto" with a route to it)."""

    accept_unevaluated: bool = False
    """true accepts an answer that leaves an operation to be done which the ground truth does not have: an integral, a
    sum, a limit, a derivative, a common divisor, a binomial, or a function of numbers such as the logarithm of 8. The
    question itself is then an answer to "compute ..."."""


class RequestConfig(Section):
    """Limits of the requests to a server that verifies."""

    timeout_s: PositiveFloat = 30.0
    """Time limit per response in seconds, all retries included."""
    num_retries: NonNegative = 3
    """Maximum number of retries after a failed connection or a status of 429 or 5xx."""
    max_concurrency: Positive = 32
    """Maximum number of concurrent requests per training process."""
    token_variable: str | None = None
    """Name of the environment variable that contains a bearer token; by default requests have none."""


class HttpRewardConfig(RequestConfig):
    """Requests to a reward server (reward.verifier = "http://...")."""

    max_outage_s: PositiveFloat = 600.0
    """Seconds to wait for a server, or a judge, that answers no request. Then the run saves a checkpoint and ends with
    exit code 75, which the job script requeues."""
    fields: tuple[SampleField, ...] = ("source", "ability", "messages", "metadata", "finish_reason", "turns")
    """Fields of a request besides response and answer. response_ids, the tokens of the response, may be long."""


class JudgeConfig(RequestConfig):
    """Verdicts of a language model behind an OpenAI-compatible server (reward.verifier = "judge")."""

    url: Address = ""
    """Address of the server without /chat/completions, such as http://host:30000/v1."""
    model: str = ""
    """Name of the model on the server."""
    rubric: str = (
        "Full marks for a response that is right and complete, by the reference answer; 0 for a wrong one."
    )
    """Criteria, which the template writes into each request."""
    template_file: UserPath | None = None
    """Jinja template of the request, with response, answer, messages and more; by default that of docs/rewards.md."""
    score_pattern: str = r"(?i)\bscore\s*[:=]\s*\**\s*(-?\d+(?:\.\d+)?)"
    """Regular expression whose last match in a reply has the score in its only group. Python's syntax; a reply whose
    search takes more than a second gives no reward."""
    min_score: float = 0.0
    """Score of the reward 0."""
    max_score: float = 10.0
    """Score of the reward 1. A score outside of the scale counts as none."""
    votes: Positive = 1
    """Number of requests for each response, whose mean score counts. A reply without a score is asked for once more."""
    temperature: NonNegativeFloat = 0.0
    """Sampling temperature of the judge; several votes need a positive one."""
    max_tokens: Positive = 1024
    """Maximum number of tokens of a reply. A reply that reaches it has no score."""
    parameters: dict[str, Any] = Field(default={})
    """Further fields of each request, such as top_p, or chat_template_kwargs."""
    cache_dir: UserPath | None = None
    """Folder for replies, which are not asked for again; several runs may share it. By default none are kept."""
    max_cache_mib: Positive = 1024
    """Size of that folder in MiB, about; the replies that were not used for longest are removed."""
    timeout_s: PositiveFloat = 120.0
    """Time limit per response in seconds, all votes and retries included."""

    @model_validator(mode="after")
    def _check_score(self) -> Self:
        if "score_pattern" in self.model_fields_set:
            _check_pattern(self.score_pattern)
        if not self.min_score < self.max_score:
            raise ValueError(f"min_score = {self.min_score:g} is not below max_score = {self.max_score:g}")
        if self.votes > 1 and self.temperature == 0:
            raise ValueError(
                f"votes = {self.votes} are all equal at temperature = 0: raise one, or lower the other"
            )
        taken = {"model", "messages", "temperature", "max_tokens", "stream", "n"} & self.parameters.keys()
        if taken:
            raise ValueError(f"parameters has {sorted(taken)}, which the judge sets itself")
        return self


def _check_pattern(pattern: str) -> None:
    # Searches with a time limit, which re lacks; imported here because most runs have no pattern of their own.
    import regex

    try:
        num_groups = regex.compile(pattern).groups
    except (regex.error, OverflowError, RecursionError) as error:
        raise ValueError(f"score_pattern is no regular expression: {error}") from error
    if num_groups != 1:
        raise ValueError(
            f"score_pattern must have one group, which is the score, as in 'Score: (\\d+)'; it has {num_groups}"
        )


class RewardConfig(Section):
    """The verifiers that give outcome rewards."""

    verifier: Address = "math"
    """exact_match, math, code, judge, a function as package.module:function, the URL of a reward server, or auto, which
    chooses by `routes`."""
    num_workers: Positive = 1
    """Number of verifier processes per training process."""
    timeout_s: PositiveFloat = 2.0
    """Time limit of one verification in seconds; a longer one is killed and counted. Code has limits of its own."""
    math: MathConfig = MathConfig()
    """Settings of the verifier of mathematical answers."""
    code: CodeConfig = CodeConfig()
    """Settings of the code verifier."""
    http: HttpRewardConfig = HttpRewardConfig()
    """Settings of requests to a reward server."""
    judge: JudgeConfig = JudgeConfig()
    """Settings of the judge, a language model."""
    routes: dict[str, Address] = Field(default={"math": "math", "code": "code"})
    """With verifier = "auto": verifier by data source or, for sources that are not listed, by ability."""

    @property
    def verifiers(self) -> tuple[str, ...]:
        """All verifiers that a run may use, each once."""
        return (self.verifier,) if self.verifier != "auto" else tuple(dict.fromkeys(self.routes.values()))

    @property
    def reads_rows(self) -> bool:
        """True if a verifier may read the messages of a prompt or the other columns of its row."""
        by_url = not {"messages", "metadata"}.isdisjoint(self.http.fields)
        return any(by_url if "://" in spec else ":" in spec or spec == JUDGE for spec in self.verifiers)

    def verifier_of(self, source: str, ability: str) -> str:
        """Return the verifier of a prompt.

        Raises:
            ValueError: auto, and routes has neither its source nor its ability.
        """
        if self.verifier != "auto":
            return self.verifier
        # The data source is the more specific of the two, so it takes precedence.
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
