"""The prompts that the embedded engine samples: a `GroupStream` of which each rank samples a share."""

import asyncio
from collections import Counter, deque
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel

from megatron_prime.engines.conversation import SampledTurn
from megatron_prime.engines.dialogue import Dialogue, DialogueSettings, close_all
from megatron_prime.engines.local.decoding import Request, decode_batch
from megatron_prime.engines.local.kept_cache import KeptCache
from megatron_prime.engines.requests import StreamKey, check_prompt
from megatron_prime.observability.activity import Worker
from megatron_prime.rollout.ranks import Ranks
from megatron_prime.types import Prompt, Rollout


@dataclass(frozen=True, slots=True)
class Sampler:
    """The means of an embedded engine to sample, with one set of weights."""

    model: PreTrainedModel
    policy_version: int
    seed: int
    max_batch_size: int
    """Most responses that a rank samples at a time."""
    ranks: Ranks
    worker: Worker
    """Records the work of this process's engine."""


class LocalGroupStream:
    """See `rollout.engine.GroupStream`. Responses are sampled within `finished`, one batch of each rank at a time.

    Args:
        sampler: the engine's model and limits.
        settings: of the responses.
        group_size: responses per prompt.
        stream_key: selects the random numbers.
    """

    is_batched = True

    def __init__(
        self, sampler: Sampler, settings: DialogueSettings, group_size: int, stream_key: int
    ) -> None:
        self._sampler = sampler
        self._settings = settings
        self._group_size = group_size
        self._stream_key = stream_key
        self._num_submitted = 0
        self._num_seen: Counter[int] = Counter()
        """Occurrences of each prompt, by its index."""
        self._unfinished: dict[int, dict[int, Rollout]] = {}
        """Number of a group -> its responses that are over, by sample."""
        self._waiting: deque[tuple[int, Dialogue]] = deque()
        """This rank's responses that have not begun, with the numbers of their groups."""
        self._live: list[tuple[int, Dialogue]] = []
        self._kept = KeptCache() if settings.environments is not None else None
        self._runner = asyncio.Runner()

    @property
    def num_in_flight(self) -> int:
        """See `GroupStream.num_in_flight`."""
        return len(self._unfinished)

    def submit(self, prompts: Sequence[Prompt]) -> None:
        """See `GroupStream.submit`."""
        for prompt in prompts:
            check_prompt(prompt, self._settings.params, self._settings.limits)
        # Every rank computes the whole order and takes its share of it, so that nothing has to be communicated before.
        requests = self._requests(prompts)
        order = _dealt_order(
            [len(prompt.token_ids) for prompt in prompts], self._sampler.ranks.world_size, self._group_size
        )
        share = [requests[place] for place in self._sampler.ranks.share(order)]
        # Responses to prompts of similar length are sampled together.
        self._waiting += sorted(share, key=lambda each: len(each[1].conversation.input_ids))
        self._sampler.worker.submit(len(share))
        self._unfinished |= {self._num_submitted + place: {} for place in range(len(prompts))}
        self._num_submitted += len(prompts)

    def finished(self, wait_s: float | None) -> list[tuple[int, list[Rollout]]]:
        """See `GroupStream.finished`. The time that it takes is that of a batch, or of all groups without a limit."""
        done: list[tuple[int, list[Rollout]]] = []
        while self._unfinished and (wait_s is None or not done):
            over = self._advance(is_whole=wait_s is None)
            version = self._sampler.policy_version
            rollouts = [(number, dialogue.rollout(version)) for number, dialogue in over]
            for number, rollout in self._sampler.ranks.gather_all(rollouts):
                self._unfinished[number][rollout.sample_index] = rollout
            full = [number for number, group in self._unfinished.items() if len(group) == self._group_size]
            done += [(number, self._in_order(self._unfinished.pop(number))) for number in full]
        return done

    def close(self) -> None:
        """End the responses that are not over, and free their environments."""
        self._sampler.worker.end(len(self._live))
        self._sampler.worker.withdraw(len(self._waiting))
        close_all(dialogue for _, dialogue in (*self._live, *self._waiting))
        self._live.clear()
        self._waiting.clear()
        self._runner.close()

    def _in_order(self, group: dict[int, Rollout]) -> list[Rollout]:
        return [group[sample] for sample in range(self._group_size)]

    def _requests(self, prompts: Sequence[Prompt]) -> list[tuple[int, Dialogue]]:
        """Return all ranks' responses with the numbers of their groups, ordered by prompt and then by sample."""
        requests = []
        for place, prompt in enumerate(prompts):
            first_draw = self._num_seen[prompt.index] * self._group_size
            self._num_seen[prompt.index] += 1
            for sample in range(self._group_size):
                # A repeated prompt continues to count: its responses must not repeat those of its first occurrence.
                key = StreamKey(self._sampler.seed, self._stream_key, prompt.index, first_draw + sample)
                dialogue = Dialogue(prompt, sample, key, self._settings)
                requests.append((self._num_submitted + place, dialogue))
        return requests

    def _advance(self, is_whole: bool) -> list[tuple[int, Dialogue]]:
        """Sample until a response of this rank is over, or all are; return those that are.

        At most max_batch_size are sampled at a time. All of them take a turn together, and then wait for the slowest
        environment; others take the place of those that are over.
        """
        sampler, environments = self._sampler, self._settings.environments
        over: list[tuple[int, Dialogue]] = []
        while (self._waiting or self._live) and (is_whole or not over):
            num_free = sampler.max_batch_size - len(self._live)
            joining = [self._waiting.popleft() for _ in range(num_free) if self._waiting]
            sampler.worker.begin(len(joining))
            self._live += joining
            if environments is not None:
                self._runner.run(_together(dialogue.begin() for _, dialogue in joining))
            self._take_turn([dialogue for _, dialogue in self._live if not dialogue.is_over])
            if environments is not None:
                self._runner.run(_together(dialogue.reply() for _, dialogue in self._live))
            ended = [each for each in self._live if each[1].is_over]
            self._live = [each for each in self._live if not each[1].is_over]
            sampler.worker.end(len(ended))
            close_all(dialogue for _, dialogue in ended)
            over += ended
        return over

    def _take_turn(self, dialogues: Sequence[Dialogue]) -> None:
        """Sample the next turn of each dialogue."""
        conversations = [dialogue.conversation for dialogue in dialogues]
        requests = [
            Request(each.input_ids, dialogue.key, each.turn_budget, each.num_tokens)
            for dialogue, each in zip(dialogues, conversations, strict=True)
        ]
        if not requests:
            return
        turns = decode_batch(self._sampler.model, requests, self._settings.params, self._kept)
        for dialogue, turn in zip(dialogues, turns, strict=True):
            spans = ((self._sampler.policy_version, 0, len(turn.token_ids)),)
            dialogue.add_turn(SampledTurn(turn.token_ids, turn.logprobs, turn.finish_reason, spans))


async def _together(work: Iterable[Coroutine[None, None, None]]) -> None:
    """Await all of the work at the same time."""
    await asyncio.gather(*work)


def _dealt_order(prompt_lengths: Sequence[int], world_size: int, group_size: int) -> list[int]:
    """Return the indices of all requests in the order in which the ranks share them.

    Prompts are dealt by length like cards, so that every rank's contiguous share mixes long and short ones. Groups stay
    together, which lets them share their prefill.
    """
    by_length = sorted(range(len(prompt_lengths)), key=lambda place: prompt_lengths[place])
    dealt = [place for hand in range(world_size) for place in by_length[hand::world_size]]
    return [place * group_size + sample for place in dealt for sample in range(group_size)]
