"""Run megatron-prime, and write when its servers had requests and when it collected.

    python -m watched_run FILE train CONFIG [section.key=value ...]

The script stands alone, because it also runs with earlier commits of the package. FILE gets a JSON object with lists:
`requests` of [begin, end, tokens] of each request to a server; `rounds` and `collections` of [begin, end] of the calls
that sample a round and that collect a batch, or wait for the next one where sampling never ends; `steps` of [begin,
end] of the trainer's steps. Times are seconds since the epoch.
"""

import contextlib
import functools
import json
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

Spans = list[list[float]]


def main(words: list[str]) -> int:
    """Attach the watches, and run the command line."""
    from megatron_prime.cli import main as command_line
    from megatron_prime.engines.sglang.client import SGLangClient
    from megatron_prime.engines.sglang.engine import SGLangEngine
    from megatron_prime.rollout.collector import Collector
    from megatron_prime.training.trainer import Trainer

    # Watched from outside, so that the product contains no code of benchmarks.
    seen: dict[str, Spans] = {"requests": [], "rounds": [], "collections": [], "steps": []}
    SGLangClient.generate = watched_request(SGLangClient.generate, seen["requests"])
    SGLangEngine.generate = watched(SGLangEngine.generate, seen["rounds"])
    Collector.collect = watched(Collector.collect, seen["collections"])
    Trainer.step = watched(Trainer.step, seen["steps"])
    with contextlib.suppress(ImportError):  # in earlier commits
        from megatron_prime.rollout.schedules.continuous import Continuous

        Continuous.collect = watched(Continuous.collect, seen["collections"])
    try:
        return command_line(words[1:])
    finally:
        with open(words[0], "w", encoding="utf-8") as file:
            json.dump(seen, file)


def watched(function: Callable[..., Any], spans: Spans) -> Callable[..., Any]:
    """Return the function with a record of each call."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        begin = time.time()
        try:
            return function(*args, **kwargs)
        finally:
            spans.append([begin, time.time()])

    return run


def watched_request(function: Callable[..., Awaitable[Any]], spans: Spans) -> Callable[..., Awaitable[Any]]:
    """Return the coroutine function with a record of each call, with the tokens of its answer, if one came."""

    @functools.wraps(function)
    async def run(*args: Any, **kwargs: Any) -> Any:
        begin, num_tokens = time.time(), 0
        try:
            answer = await function(*args, **kwargs)
            num_tokens = len(answer.get("output_ids", ()))
            return answer
        finally:
            spans.append([begin, time.time(), num_tokens])

    return run


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
