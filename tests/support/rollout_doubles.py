"""Test doubles for the rollout package: ranks as threads, a scripted engine, a toy verifier."""

import math
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

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
        self.requests = []
        self._sources = sources

    def next(self, num_prompts):
        self.requests.append(num_prompts)
        indices = range(self.num_taken, self.num_taken + num_prompts)
        self.num_taken += num_prompts
        return [
            Prompt(index, (index + 3,), "good", self._sources[index % len(self._sources)])
            for index in indices
        ]


class ScriptedEngine:
    """An engine that answers prompt i with the token lists script(i), one per sample."""

    def __init__(self, script, finish=lambda index, sample: FinishReason.STOP, version=lambda sample: 5):
        self.script = script
        self.finish = finish
        self.version = version
        self.stream_keys = []

    policy_version = 5

    def generate(self, prompts, params, group_size, stream_key, environments=None):
        self.stream_keys.append(stream_key)
        self.environments = environments
        return [
            Rollout(
                prompt=prompt,
                sample_index=sample,
                response_ids=tuple(self.script(prompt.index)[sample]),
                rollout_logprobs=(-1.0,) * len(self.script(prompt.index)[sample]),
                finish_reason=self.finish(prompt.index, sample),
                policy_version=self.version(sample),
            )
            for prompt in prompts
            for sample in range(group_size)
        ]

    def release_memory(self): ...

    def close(self): ...
