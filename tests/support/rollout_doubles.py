"""Test doubles for the rollout package: ranks as threads, a scripted engine, a toy verifier."""

import contextlib
import math
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from megatron_prime.rollout.engine import Engine
from megatron_prime.rollout.ranks import Ranks
from megatron_prime.types import FinishReason, Prompt, Rollout
from tests.support import deadlines

BUILDING = threading.Lock()
"""Lock to hold while an HF model is built: transformers patches torch.nn.init and the default dtype of the process."""


def run_on_ranks(num_ranks, function):
    """Run function(ranks) on num_ranks threads whose gather exchanges lists, and return the results by rank."""
    barrier = threading.Barrier(num_ranks, timeout=deadlines.seconds(30))
    slots = [None] * num_ranks

    def run(rank):
        def gather(items):
            slots[rank] = items
            barrier.wait()
            everything = list(slots)
            barrier.wait()
            return everything

        try:
            return function(Ranks(rank, num_ranks, gather))
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(num_ranks) as pool:
        return list(pool.map(run, range(num_ranks)))


GOOD, BAD, BROKEN = 1, 0, 2


class WordTokenizer:
    """A tokenizer that decodes each token id to a word."""

    def decode(self, token_ids, *, skip_special_tokens):
        assert skip_special_tokens
        return " ".join(
            {GOOD: "good", BAD: "bad", BROKEN: "broken"}.get(token, str(token)) for token in token_ids
        )


@dataclass(frozen=True)
class FixedOutcome:
    """A verifier outcome with a given reward."""

    reward: float
    is_away: bool = False
    detail: str = ""


def verify_words(samples):
    """Verify responses by their last word: `good` is correct, `broken` is a verifier error."""
    scores = {"good": 1.0, "broken": math.nan}
    return [FixedOutcome(scores.get(sample.response_text.split()[-1], 0.0)) for sample in samples]


class CountingStream:
    """A prompt provider with the prompts 0, 1, 2, ..."""

    def __init__(self, sources=("",)):
        self.num_taken = 0
        self._sources = sources

    def state_dict(self):
        return {"num_taken": self.num_taken}

    def load_state_dict(self, state):
        self.num_taken = state["num_taken"]

    def next(self, num_prompts):
        indices = range(self.num_taken, self.num_taken + num_prompts)
        self.num_taken += num_prompts
        return [
            Prompt(index, (index + 3,), "good", self._sources[index % len(self._sources)])
            for index in indices
        ]


class ScriptedEngine(Engine):
    """An engine that answers prompt i with the token lists script(i), one per sample.

    `finish_next(numbers)` chooses which of the groups in flight, by their numbers, the next look finds finished.
    """

    def __init__(
        self,
        script,
        finish=lambda index, sample: FinishReason.STOP,
        version=lambda sample: 5,
        finish_next=list,
        is_batched=False,
    ):
        self.script = script
        self.finish = finish
        self.version = version
        self.finish_next = finish_next
        self.is_batched = is_batched
        self.stream_keys = []
        self.submitted = []
        """Numbers of prompts of all submissions of the last stream."""
        self.most_in_flight = 0

    policy_version = 5

    @contextlib.contextmanager
    def stream(self, params, group_size, stream_key, environments=None):
        self.stream_keys.append(stream_key)
        self.environments = environments
        self.submitted = []
        yield ScriptedStream(self, group_size)

    def while_training(self):
        return contextlib.nullcontext()

    def release_memory(self): ...

    def close(self): ...


class ScriptedStream:
    """The stream of a ScriptedEngine."""

    def __init__(self, engine, group_size):
        self.engine, self.group_size = engine, group_size
        self.is_batched = engine.is_batched
        self.in_flight = {}
        self.num_submitted = 0

    @property
    def num_in_flight(self):
        return len(self.in_flight)

    def submit(self, prompts):
        self.engine.submitted.append(len(prompts))
        for prompt in prompts:
            self.in_flight[self.num_submitted] = prompt
            self.num_submitted += 1
        self.engine.most_in_flight = max(self.engine.most_in_flight, len(self.in_flight))

    def finished(self, wait_s):
        chosen = list(self.in_flight) if wait_s is None else self.engine.finish_next(list(self.in_flight))
        return [(number, self.group(self.in_flight.pop(number))) for number in chosen]

    def group(self, prompt):
        script = self.engine.script(prompt.index)
        return [
            Rollout(
                prompt=prompt,
                sample_index=sample,
                response_ids=tuple(script[sample]),
                rollout_logprobs=(-1.0,) * len(script[sample]),
                finish_reason=self.engine.finish(prompt.index, sample),
                policy_version=self.engine.version(sample),
            )
            for sample in range(self.group_size)
        ]
