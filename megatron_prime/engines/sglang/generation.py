"""The groups of one stream (`Engine.stream`) on a fleet of servers.

Every group is a task. The task waits for a server with free capacity, samples the missing responses of its group there,
and repeats this until the whole group has been sampled by one policy version. A response is a coroutine that asks the
server for a turn and the environment for a reply, and so on. When the server fails, another one continues from the last
complete turn; the environment has seen exactly the complete turns.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

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
GATHER_S = 0.02
"""Time after the end of a group in which others that end as well are returned with it."""
ABORT_EVERY_S = 0.25
"""Time between two tries to abort requests, of which the first may overtake its request."""
MAX_ABORT_S = 30.0
"""Time after which requests that do not end are given up."""
MAX_RESAMPLES = 4
"""Samplings of one group, each by more than one policy version, before an error is raised."""


@dataclass(frozen=True, slots=True)
class GenerationSettings:
    """Settings of one stream."""

    dialogues: DialogueSettings
    group_size: int
    seed: int
    stream_key: int
    deterministic: bool = False
    allow_mixed_versions: bool = False
    routing: RoutingReader | None = None
    """Reads the experts of each token; None when routing is not replayed."""
    stream: int = 0
    """Number of the stream; groups of the newest begin first."""

    @property
    def params(self) -> SamplingParams:
        """The sampling parameters."""
        return self.dialogues.params


class Generation:
    """Samples groups of responses, on one event loop. `close` must follow."""

    def __init__(self, fleet: Fleet, settings: GenerationSettings, name: str) -> None:
        """Begin without a group; `name` must be unique among all clients of the servers, as request ids begin so."""
        self._fleet = fleet
        self._settings = settings
        self._name = name
        self._num_seen: Counter[int] = Counter()
        """Occurrences of each prompt, by its index."""
        self._tasks: dict[asyncio.Task[list[Rollout]], int] = {}
        """Groups that were not returned yet, with their numbers."""
        self._num_submitted = 0
        self._news: asyncio.Future[None] | None = None
        """Done when a group has ended; set while `finished` waits."""
        self._requests: dict[asyncio.Task[dict[str, Any]], tuple[SGLangClient, str]] = {}
        """Requests that were not answered yet, with their servers and ids."""
        self._num_requests = 0
        self.num_replayed = 0
        """Responses that were submitted again because a server failed."""
        self.num_resampled_groups = 0
        """Groups that were sampled again because their versions differed."""
        fleet.start_watch()

    def submit(self, prompts: Sequence[Prompt]) -> None:
        """Begin to sample a group for each prompt; groups are numbered from 0."""
        for prompt in prompts:
            first_draw = self._num_seen[prompt.index] * self._settings.group_size
            self._num_seen[prompt.index] += 1
            task = asyncio.ensure_future(self._group(prompt, first_draw))
            task.add_done_callback(self._note_end)
            self._tasks[task] = self._num_submitted
            self._num_submitted += 1

    async def finished(self, wait_s: float | None) -> list[tuple[int, list[Rollout]]]:
        """Return groups that have ended, each once, with their numbers; wait for one, or without a limit for all.

        Raises EngineError when servers keep failing.
        """
        while self._tasks:
            ended = [task for task in self._tasks if task.done()]
            if ended and (wait_s is not None or len(ended) == len(self._tasks)):
                return [(self._tasks.pop(task), task.result()) for task in ended]
            for task in ended:
                task.result()  # A fault is raised at once.
            self._news = asyncio.get_running_loop().create_future()
            if not await self._fleet.wait_for(self._news, wait_s):
                break
            await asyncio.sleep(GATHER_S)
        return []

    async def close(self, is_orderly: bool = True) -> None:
        """Abort the groups that have not ended; return when the servers work on none of them.

        Args:
            is_orderly: wait until all servers are up again, too.
        """
        try:
            await cancel(list(self._tasks))
            await self._end_requests()
            if is_orderly:
                await self._fleet.wait_until_up()
        finally:
            await self._fleet.stop_watch()

    def _note_end(self, task: asyncio.Task[list[Rollout]]) -> None:
        del task
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    async def _end_requests(self) -> None:
        """Abort requests until the servers have answered all of them."""
        give_up_at = time.monotonic() + MAX_ABORT_S
        while self._requests and time.monotonic() < give_up_at:
            aborts = [client.abort(request_id) for client, request_id in self._requests.values()]
            # A server that does not answer is dead or dying, and its requests end with it.
            await asyncio.gather(*aborts, return_exceptions=True)
            if self._requests:
                await asyncio.wait(list(self._requests), timeout=ABORT_EVERY_S)
        await cancel(list(self._requests))

    async def _group(self, prompt: Prompt, first_draw: int) -> list[Rollout]:
        for _ in range(MAX_RESAMPLES):
            # Responses that are sampled again have new environments as well: the old ones have seen the old turns.
            group = self._dialogues(prompt, first_draw)
            oldest = self._fleet.policy_version
            try:
                await self._sample_group(group, oldest)
            finally:
                close_all(group)
            versions = frozenset[int]().union(*(dialogue.conversation.versions for dialogue in group))
            if self._settings.allow_mixed_versions or len(versions) <= 1:
                version = min(versions, default=oldest)
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

    async def _sample_group(self, group: Sequence[Dialogue], oldest: int) -> None:
        fault: ServerUnreachableError | None = None
        for _ in range(MAX_REPLAYS):
            missing = [dialogue for dialogue in group if not dialogue.is_over]
            if not missing:
                return
            fault = await self._submit(missing, oldest) or fault
        raise EngineError(
            f"the responses to prompt {group[0].conversation.prompt.index} were submitted {MAX_REPLAYS} times, each "
            f"time to a server that then failed. The last fault: {fault}"
        )

    async def _submit(self, dialogues: Sequence[Dialogue], oldest: int) -> ServerUnreachableError | None:
        """Finish some responses of a group on one server, as far as it lives; return an error that needs a replay."""
        # The whole group goes to one server and stays there, whose prefix cache then computes the prompt once, and
        # every turn once.
        params = self._settings.params
        num_tokens = len(dialogues[0].conversation.prompt.token_ids) + params.max_response_tokens
        server = await self._fleet.balancer.take([num_tokens] * len(dialogues), self._settings.stream)
        tasks = [asyncio.ensure_future(self._respond(server, dialogue, oldest)) for dialogue in dialogues]
        # Not at the end of a task's coroutine, which does not run at all when the task is cancelled at once.
        freed = [asyncio.ensure_future(self._free(server, num_tokens, task)) for task in tasks]
        try:
            faults = await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            await cancel(tasks)
            await asyncio.gather(*freed)
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

    async def _free(self, server: int, num_tokens: int, task: asyncio.Task[None]) -> None:
        """Give a response's share of a server back when its task has ended."""
        # The server's capacity is kept while the environment works: the next turn finds its place free and the turns
        # before it in the prefix cache, and no more environments are open than the servers have places.
        await asyncio.wait([task])
        self._fleet.balancer.give_back(server, num_tokens)

    async def _respond(self, server: int, dialogue: Dialogue, oldest: int) -> None:
        """Continue one response on a server to its end. When the server fails, its complete turns are kept."""
        if not dialogue.has_begun:
            await dialogue.begin()
        while not dialogue.is_over:
            dialogue.add_turn(await self._turn(server, dialogue, oldest))
            await dialogue.reply()

    async def _turn(self, server: int, dialogue: Dialogue, oldest: int) -> SampledTurn:
        """Sample the next turn of a response."""
        client = self._fleet.client_now(server)
        turn = await self._ask(client, server, dialogue)
        if min(turn.versions) < oldest:
            # The server restarted and serves the weights it was started with, until the fleet has resynced it.
            raise ServerUnreachableError(
                f"{client.url} served policy version {min(turn.versions)} instead of {oldest}"
            )
        return turn

    async def _ask(self, client: SGLangClient, server: int, dialogue: Dialogue) -> SampledTurn:
        settings, conversation = self._settings, dialogue.conversation
        budget, input_ids = conversation.turn_budget, conversation.input_ids
        self._num_requests += 1
        # SGLang aborts all requests whose ids begin with the given one, so that none may begin with another.
        request_id = f"{self._name}-{self._num_requests}-"
        body = request_body(
            input_ids,
            budget,
            settings.params,
            request_id,
            seed=seed_of(dialogue.key) if settings.deterministic else None,
            return_routing=settings.routing is not None,
        )
        request = asyncio.ensure_future(client.generate(body))
        self._requests[request] = client, request_id
        request.add_done_callback(self._forget)
        turn = parse_completion(
            # When the response is given up, its request goes on until the server has been told, and has ended it.
            await asyncio.shield(request),
            lambda name: self._fleet.names.version_of(server, name),
            len(input_ids),
            settings.routing,
        )
        if not turn.token_ids:
            # Nobody here aborts requests: the server did, or another of its clients. Elsewhere it may succeed.
            raise ServerUnreachableError(f"{client.url} ended a response before its first token")
        _check_length(turn, budget, client)
        return turn

    def _forget(self, request: asyncio.Task[dict[str, Any]]) -> None:
        del self._requests[request]
        if not request.cancelled():
            request.exception()  # Nobody else may look at it.


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
