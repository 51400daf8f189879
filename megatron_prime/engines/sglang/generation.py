"""One call of `Engine.generate` against a fleet: continuous load, replay, one version a group, abort.

Every group is a task. A task waits for a server with room, submits what is missing of its group there, and repeats that
until all of the group has been answered by one set of weights.
"""

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from megatron_prime.engines.local.sampling import StreamKey
from megatron_prime.engines.sglang.client import ServerUnreachableError, SGLangClient
from megatron_prime.engines.sglang.fleet import Fleet, cancel
from megatron_prime.engines.sglang.routing import RoutingReader
from megatron_prime.engines.sglang.sampling import Completion, parse_completion, request_body, seed_of
from megatron_prime.rollout.engine import EngineError
from megatron_prime.types import FinishReason, Prompt, Rollout, SamplingParams

MAX_REPLAYS = 8
"""Submissions of one response, each to a server that then failed, before the run is told."""
MAX_RESAMPLES = 4
"""Samplings of one group, each mixed from more than one policy version, before the run is told."""
_ABORT_EVERY_S = 0.2


@dataclass(frozen=True, slots=True)
class GenerationSettings:
    """How one call samples."""

    params: SamplingParams
    group_size: int
    seed: int
    stream_key: int
    deterministic: bool = False
    allow_mixed_versions: bool = False
    routing: RoutingReader | None = None
    """Reads the experts of each token, where they are asked for."""


class Generation:
    """Samples groups of responses. For one call and one event loop."""

    def __init__(self, fleet: Fleet, settings: GenerationSettings, call_index: int) -> None:
        """call_index is unique among the calls of a process: it is part of the request ids."""
        self._fleet = fleet
        self._settings = settings
        self._call_index = call_index
        self._first_version = fleet.policy_version
        self._num_requests = 0
        self._in_flight: dict[str, SGLangClient] = {}
        self._aborter: asyncio.Task[None] | None = None
        self.num_replayed = 0
        """Responses that were submitted again because a server failed."""
        self.num_resampled_groups = 0
        """Groups that were sampled again because their versions differed."""

    async def run(self, prompts: Sequence[Prompt]) -> list[Rollout]:
        """All responses, by prompt and then sample. Raises EngineError when the fleet can't be kept up."""
        num_seen: Counter[int] = Counter()
        groups = []
        for prompt in prompts:
            first_draw = num_seen[prompt.index] * self._settings.group_size
            num_seen[prompt.index] += 1
            groups.append(asyncio.ensure_future(self._group(prompt, first_draw)))
        try:
            finished = await asyncio.gather(*groups)
        finally:
            await cancel([*groups, *([self._aborter] if self._aborter is not None else [])])
        return [rollout for group in finished for rollout in group]

    def abort(self) -> None:
        """End all responses early: each keeps the tokens it has, at least one."""
        if self._aborter is None:
            self._aborter = asyncio.ensure_future(self._abort())

    async def _abort(self) -> None:
        # Again and again: a request that is on its way to the server is not known there yet.
        while True:
            calls = [client.abort_request(request_id) for request_id, client in self._in_flight.items()]
            await asyncio.gather(*calls, return_exceptions=True)  # a dead server's requests end by themselves
            await asyncio.sleep(_ABORT_EVERY_S)

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
        """Ask one server for some samples, put the answers into `done`; return a fault that calls for a replay."""
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
            completion = await self._ask(client, prompt, draw_index)
        finally:
            await self._fleet.balancer.give_back(server, num_tokens)
        if min(completion.versions) < self._first_version:
            raise ServerUnreachableError(
                f"{client.url} served policy version {min(completion.versions)} instead of {self._first_version}"
            )
        return completion

    async def _ask(self, client: SGLangClient, prompt: Prompt, draw_index: int) -> Completion:
        settings = self._settings
        seed = None
        if settings.deterministic:
            seed = seed_of(StreamKey(settings.seed, settings.stream_key, prompt.index, draw_index))
        if self._aborter is None:
            request_id = self._next_id()
            self._in_flight[request_id] = client
            try:
                completion = await self._complete(client, prompt, request_id, seed=seed)
            finally:
                del self._in_flight[request_id]
            if completion.token_ids:
                self._check_length(completion, client)
                return completion
            if self._aborter is None:
                raise ServerUnreachableError(f"{client.url} ended a response before its first token")
        # Aborted before the first token: a rollout has at least one, so sample just that.
        completion = await self._complete(client, prompt, self._next_id(), max_response_tokens=1, seed=seed)
        if not completion.token_ids:
            raise ServerUnreachableError(f"{client.url} ended a response before its first token")
        if completion.finish_reason is FinishReason.STOP or settings.params.max_response_tokens == 1:
            return completion
        return replace(completion, finish_reason=FinishReason.ABORT)

    async def _complete(
        self, client: SGLangClient, prompt: Prompt, request_id: str, **options: int | None
    ) -> Completion:
        routing = self._settings.routing
        body = request_body(
            prompt, self._settings.params, request_id, return_routing=routing is not None, **options
        )
        return parse_completion(await client.generate(body), len(prompt.token_ids), routing)

    def _check_length(self, completion: Completion, client: SGLangClient) -> None:
        """A response cut before its limit would count as truncated, though the model was not at fault."""
        length, limit = len(completion.token_ids), self._settings.params.max_response_tokens
        if completion.finish_reason is FinishReason.LENGTH and length < limit:
            raise EngineError(
                f"{client.url} cut a response at {length} of {limit} tokens: its context or its KV cache is too small; "
                "raise rollout.sglang.max_total_tokens or lower rollout.max_response_tokens"
            )

    def _next_id(self) -> str:
        self._num_requests += 1
        # The dot: an abort ends all requests whose ids begin with the given one.
        return f"prime-{self._call_index}-{self._num_requests}."
