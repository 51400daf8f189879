"""Watches note the time of calls and the tokens of answers, and change nothing else."""

import asyncio

import pytest

from benchmarks.overlap.watched_run import watched, watched_request


def test_calls_are_noted_with_their_result_or_error():
    spans: list[list[float]] = []

    def divide(a, b):
        return a / b

    assert watched(divide, spans)(6, b=2) == 3
    with pytest.raises(ZeroDivisionError):
        watched(divide, spans)(1, 0)
    assert len(spans) == 2 and all(begin <= end for begin, end in spans)


def test_requests_are_noted_with_the_tokens_of_their_answer_also_when_they_are_cancelled():
    spans: list[list[float]] = []

    async def generate(body):
        await asyncio.sleep(body["seconds"])
        return {"output_ids": [1, 2, 3]}

    async def both():
        request = watched_request(generate, spans)
        cancelled = asyncio.create_task(request({"seconds": 60}))
        answer = await request({"seconds": 0.01})
        cancelled.cancel()
        await asyncio.gather(cancelled, return_exceptions=True)
        return answer

    assert asyncio.run(both()) == {"output_ids": [1, 2, 3]}
    assert [tokens for *_, tokens in spans] == [3, 0]
    assert spans[0][1] - spans[0][0] >= 0.01
