"""One call of `Engine.generate` on a fleet of servers.

Every group is a task. The task waits for a server with free capacity, submits the missing responses of its group there,
and repeats this until the whole group has been sampled by one policy version.
"""

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from megatron_prime.engines.requests import StreamKey
from megatron_prime.engines.sglang.client import ServerUnreachableError, SGLangClient
from megatron_prime.engines.sglang.fleet import Fleet, cancel
from megatron_prime.engines.sglang.routing import RoutingReader
from megatron_prime.engines.sglang.sampling import Completion, parse_completion, request_body, seed_of
from megatron_prime.rollout.engine import EngineError
from megatron_prime.types import FinishReason, Prompt, Rollout, SamplingParams

MAX_REPLAYS = 8
"""Submissions of one response, each to a server that then failed, before an error is raised."""
MAX_RESAMPLES = 4
"""Samplings of one group, each by more than one policy version, before an error is raised."""


@dataclass(frozen=True, slots=True)
class GenerationSettings:
    """Settings of one call."""

    params: SamplingParams
    group_size: int
    seed: int
    stream_key: int
    deterministic: bool = False
    allow_mixed_versions: bool = False
    routing: RoutingReader | None = None
    """Reads the experts of each token; None when routing is not replayed."""


class Generation:
    """Samples groups of responses, for one call on one event loop."""

    def __init__(self, fleet: Fleet, settings: GenerationSettings, call_index: int) -> None:
        """Prepare a call; `call_index` must be unique in the process, as it is part of the request ids."""
        self._fleet = fleet
        self._settings = settings
        self._call_index = call_index
        self._first_version = fleet.policy_version
        self._num_requests = 0
        self.num_replayed = 0
        """Responses that were submitted again because a server failed."""
        self.num_resampled_groups = 0
        """Groups that were sampled again because their versions differed."""

    async def run(self, prompts: Sequence[Prompt]) -> list[Rollout]:
        """Return all responses, ordered by prompt and then by sample. Raises EngineError when servers keep failing."""
        num_seen: Counter[int] = Counter()
        groups = []
        for prompt in prompts:
            first_draw = num_seen[prompt.index] * self._settings.group_size
            num_seen[prompt.index] += 1
            groups.append(asyncio.ensure_future(self._group(prompt, first_draw)))
        try:
            finished = await asyncio.gather(*groups)
        finally:
            await cancel(groups)
        return [rollout for group in finished for rollout in group]

    async def _group(self, prompt: Prompt, first_draw: int) -> list[Rollout]:
        for _ in range(MAX_RESAMPLES):
            completions = await self._sample_group(prompt, first_draw)
            versions = frozenset[int]().union(*(completion.versions for completion in completions))
            if self._settings.allow_mixed_versions or len(versions) == 1:
                return [completion.rollout(prompt, sample) for sample, completion in enumerate(completions)]
            self.num_resampled_groups += 1
        raise EngineError(
            f"the group of prompt {prompt.index} was sampled {MAX_RESAMPLES} times, each time by more than one policy "
            "version: sync weights less often, pause generation over a sync, or set "
            "rollout.sglang.allow_mixed_versions = true"
        )

    async def _sample_group(self, prompt: Prompt, first_draw: int) -> list[Completion]:
        done: dict[int, Completion] = {}
        fault: ServerUnreachableError | None = None
        for _ in range(MAX_REPLAYS):
            missing = [sample for sample in range(self._settings.group_size) if sample not in done]
            if not missing:
                return [done[sample] for sample in range(self._settings.group_size)]
            fault = await self._submit(prompt, first_draw, missing, done) or fault
        raise EngineError(
            f"the responses to prompt {prompt.index} were submitted {MAX_REPLAYS} times, each time to a server that "
            f"then failed. The last fault: {fault}"
        )

    async def _submit(
        self, prompt: Prompt, first_draw: int, samples: Sequence[int], done: dict[int, Completion]
    ) -> ServerUnreachableError | None:
        """Request some samples from one server and put the answers into `done`; return an error that needs a replay."""
        # The whole group goes to one server, whose prefix cache then computes the prompt once.
        num_tokens = len(prompt.token_ids) + self._settings.params.max_response_tokens
        server = await self._fleet.balancer.take([num_tokens] * len(samples))
        answers = await asyncio.gather(
            *(self._one(server, num_tokens, prompt, first_draw + sample) for sample in samples),
            return_exceptions=True,
        )
        fault: ServerUnreachableError | None = None
        for sample, answer in zip(samples, answers, strict=True):
            if isinstance(answer, Completion):
                done[sample] = answer
            elif isinstance(answer, ServerUnreachableError):
                fault = answer
                self.num_replayed += 1
            else:
                raise answer
        if fault is not None:
            self._fleet.report(server)
        return fault

    async def _one(self, server: int, num_tokens: int, prompt: Prompt, draw_index: int) -> Completion:
        try:
            client = self._fleet.client_now(server)
            completion = await self._ask(client, server, prompt, draw_index)
        finally:
            await self._fleet.balancer.give_back(server, num_tokens)
        if min(completion.versions) < self._first_version:
            # The server restarted and serves the weights it was started with, until the fleet has resynced it.
            raise ServerUnreachableError(
                f"{client.url} served policy version {min(completion.versions)} instead of {self._first_version}"
            )
        return completion

    async def _ask(self, client: SGLangClient, server: int, prompt: Prompt, draw_index: int) -> Completion:
        settings = self._settings
        seed = None
        if settings.deterministic:
            seed = seed_of(StreamKey(settings.seed, settings.stream_key, prompt.index, draw_index))
        body = request_body(
            prompt,
            settings.params,
            self._next_id(),
            seed=seed,
            return_routing=settings.routing is not None,
        )
        completion = parse_completion(
            await client.generate(body),
            lambda name: self._fleet.names.version_of(server, name),
            len(prompt.token_ids),
            settings.routing,
        )
        if not completion.token_ids:
            # Nobody here aborts requests: the server did, or another of its clients. Elsewhere it may succeed.
            raise ServerUnreachableError(f"{client.url} ended a response before its first token")
        self._check_length(completion, client)
        return completion

    def _check_length(self, completion: Completion, client: SGLangClient) -> None:
        """Raise EngineError for a response that the server cut before its limit.

        It would count as truncated, though the model would have gone on.
        """
        length, limit = len(completion.token_ids), self._settings.params.max_response_tokens
        if completion.finish_reason is FinishReason.LENGTH and length < limit:
            raise EngineError(
                f"{client.url} cut a response at {length} of {limit} tokens: its context or its KV cache is too small; "
                "raise rollout.sglang.max_total_tokens or lower rollout.max_response_tokens"
            )

    def _next_id(self) -> str:
        self._num_requests += 1
        return f"prime-{self._call_index}-{self._num_requests}"
