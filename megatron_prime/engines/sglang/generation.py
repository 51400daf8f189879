"""One call of `Engine.generate` on a fleet of servers.

Every group is a task. The task waits for a server with free capacity, samples the missing responses of its group there,
and repeats this until the whole group has been sampled by one policy version. A response is a coroutine that asks the
server for a turn and the environment for a reply, and so on. When the server fails, another one continues from the last
complete turn; the environment has seen exactly the complete turns.
"""

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from megatron_prime.engines.conversation import SampledTurn
from megatron_prime.engines.dialogue import Dialogue, DialogueSettings, close_all
from megatron_prime.engines.requests import StreamKey
from megatron_prime.engines.sglang.client import ServerUnreachableError, SGLangClient
from megatron_prime.engines.sglang.fleet import Fleet, cancel
from megatron_prime.engines.sglang.routing import RoutingReader
from megatron_prime.engines.sglang.sampling import parse_completion, request_body, seed_of
from megatron_prime.rollout.engine import EngineError
from megatron_prime.types import FinishReason, Prompt, Rollout, SamplingParams

MAX_REPLAYS = 8
"""Submissions of one response, each to a server that then failed, before an error is raised."""
MAX_RESAMPLES = 4
"""Samplings of one group, each by more than one policy version, before an error is raised."""


@dataclass(frozen=True, slots=True)
class GenerationSettings:
    """Settings of one call."""

    dialogues: DialogueSettings
    group_size: int
    seed: int
    stream_key: int
    deterministic: bool = False
    allow_mixed_versions: bool = False
    routing: RoutingReader | None = None
    """Reads the experts of each token; None when routing is not replayed."""

    @property
    def params(self) -> SamplingParams:
        """The sampling parameters."""
        return self.dialogues.params


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
            # Responses that are sampled again have new environments as well: the old ones have seen the old turns.
            group = self._dialogues(prompt, first_draw)
            try:
                await self._sample_group(group)
            finally:
                close_all(group)
            versions = frozenset[int]().union(*(dialogue.conversation.versions for dialogue in group))
            if self._settings.allow_mixed_versions or len(versions) <= 1:
                version = min(versions, default=self._first_version)
                return [dialogue.rollout(version) for dialogue in group]
            self.num_resampled_groups += 1
        raise EngineError(
            f"the group of prompt {prompt.index} was sampled {MAX_RESAMPLES} times, each time by more than one policy "
            "version: sync weights less often, pause generation over a sync, or set "
            "rollout.sglang.allow_mixed_versions = true"
        )

    def _dialogues(self, prompt: Prompt, first_draw: int) -> list[Dialogue]:
        settings = self._settings
        keys = [
            StreamKey(settings.seed, settings.stream_key, prompt.index, first_draw + sample)
            for sample in range(settings.group_size)
        ]
        return [Dialogue(prompt, sample, key, settings.dialogues) for sample, key in enumerate(keys)]

    async def _sample_group(self, group: Sequence[Dialogue]) -> None:
        fault: ServerUnreachableError | None = None
        for _ in range(MAX_REPLAYS):
            missing = [dialogue for dialogue in group if not dialogue.is_over]
            if not missing:
                return
            fault = await self._submit(missing) or fault
        raise EngineError(
            f"the responses to prompt {group[0].conversation.prompt.index} were submitted {MAX_REPLAYS} times, each "
            f"time to a server that then failed. The last fault: {fault}"
        )

    async def _submit(self, dialogues: Sequence[Dialogue]) -> ServerUnreachableError | None:
        """Finish some responses of a group on one server, as far as it lives; return an error that needs a replay."""
        # The whole group goes to one server and stays there, whose prefix cache then computes the prompt once, and
        # every turn once.
        params = self._settings.params
        num_tokens = len(dialogues[0].conversation.prompt.token_ids) + params.max_response_tokens
        server = await self._fleet.balancer.take([num_tokens] * len(dialogues))
        tasks = [asyncio.ensure_future(self._respond(server, num_tokens, dialogue)) for dialogue in dialogues]
        try:
            faults = await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            await cancel(tasks)
        fault: ServerUnreachableError | None = None
        for error in faults:
            if isinstance(error, ServerUnreachableError):
                fault = error
                self.num_replayed += 1
            elif error is not None:
                raise error
        if fault is not None:
            self._fleet.report(server)
        return fault

    async def _respond(self, server: int, num_tokens: int, dialogue: Dialogue) -> None:
        """Continue one response on a server to its end. When the server fails, its complete turns are kept."""
        # The server's capacity is kept while the environment works: the next turn finds its place free and the turns
        # before it in the prefix cache, and no more environments are open than the servers have places.
        try:
            if not dialogue.has_begun:
                await dialogue.begin()
            while not dialogue.is_over:
                dialogue.add_turn(await self._turn(server, dialogue))
                await dialogue.reply()
        finally:
            await self._fleet.balancer.give_back(server, num_tokens)

    async def _turn(self, server: int, dialogue: Dialogue) -> SampledTurn:
        """Sample the next turn of a response."""
        client = self._fleet.client_now(server)
        turn = await self._ask(client, server, dialogue)
        if min(turn.versions) < self._first_version:
            # The server restarted and serves the weights it was started with, until the fleet has resynced it.
            raise ServerUnreachableError(
                f"{client.url} served policy version {min(turn.versions)} instead of {self._first_version}"
            )
        return turn

    async def _ask(self, client: SGLangClient, server: int, dialogue: Dialogue) -> SampledTurn:
        settings, conversation = self._settings, dialogue.conversation
        budget, input_ids = conversation.turn_budget, conversation.input_ids
        body = request_body(
            input_ids,
            budget,
            settings.params,
            self._next_id(),
            seed=seed_of(dialogue.key) if settings.deterministic else None,
            return_routing=settings.routing is not None,
        )
        turn = parse_completion(
            await client.generate(body),
            lambda name: self._fleet.names.version_of(server, name),
            len(input_ids),
            settings.routing,
        )
        if not turn.token_ids:
            # Nobody here aborts requests: the server did, or another of its clients. Elsewhere it may succeed.
            raise ServerUnreachableError(f"{client.url} ended a response before its first token")
        _check_length(turn, budget, client)
        return turn

    def _next_id(self) -> str:
        self._num_requests += 1
        return f"prime-{self._call_index}-{self._num_requests}"


def _check_length(turn: SampledTurn, budget: int, client: SGLangClient) -> None:
    """Raise EngineError for a turn that the server cut before its limit.

    It would count as truncated, though the model would have gone on.
    """
    length = len(turn.token_ids)
    if length > budget:
        raise EngineError(f"{client.url} sampled {length} tokens where {budget} were asked for")
    if turn.finish_reason is FinishReason.LENGTH and length < budget:
        raise EngineError(
            f"{client.url} cut a response at {length} of {budget} tokens: its context or its KV cache is too small; "
            "raise rollout.sglang.max_total_tokens or lower rollout.max_response_tokens"
        )
