"""Simulated servers are compared to closed forms, and to a server that decodes one step after another."""

import pytest

from benchmarks.overlap.clock import Clock, Event
from benchmarks.overlap.servers import DecodeSpeed, Response, Server, Verifiers


def ends_of(speed, lengths, starts=None, prompt_tokens=0):
    """Return the moment at which each response ends, with its server."""
    clock = Clock()
    server = Server(clock, speed, len(lengths))
    ends, last = {}, Event()

    def ended(index):
        ends[index] = clock.now
        if len(ends) == len(lengths):
            last.happen()

    for index, length in enumerate(lengths):
        response = Response(prompt_tokens, length, lambda index=index: ended(index))
        clock.call((starts or [0] * len(lengths))[index], lambda response=response: server.start([response]))
    clock.run(last)
    server.advance()
    return [ends[index] for index in range(len(lengths))], server


def test_without_a_cost_per_response_all_run_at_full_speed():
    ends, server = ends_of(DecodeSpeed(0.5), [10, 4, 7])
    assert ends == pytest.approx([5.0, 2.0, 3.5])
    assert server.num_tokens == pytest.approx(21)
    assert server.busy_s == pytest.approx(5.0)


def test_with_a_cost_per_response_alone_a_server_is_processor_sharing():
    """Of jobs that start together, i ends when the sum over j of min(length i, length j) is served."""
    lengths = [10, 4, 7, 7]
    ends, _ = ends_of(DecodeSpeed(0.0, per_response_s=0.25), lengths)
    expected = [0.25 * sum(min(mine, other) for other in lengths) for mine in lengths]
    assert ends == pytest.approx(expected)


def test_equal_responses_with_a_cost_of_context_take_the_integral_of_its_growth():
    num, length, prompt = 3, 100, 20
    speed = DecodeSpeed(0.01, 0.002, 1e-4)
    ends, _ = ends_of(speed, [length] * num, prompt_tokens=prompt)
    growth = num * length**2 / 2
    expected = length * (0.01 + num * 0.002) + 1e-4 * (num * prompt * length + growth)
    assert ends == pytest.approx([expected] * num)


def test_responses_that_come_and_go_agree_with_decoding_step_by_step():
    lengths, starts, prompt = [400, 150, 900, 60], [0.0, 1.0, 2.5, 2.5], 30
    speed = DecodeSpeed(0.004, 0.0005, 2e-6)
    ends, server = ends_of(speed, lengths, starts, prompt)
    clock, done = 0.0, [0] * len(lengths)
    expected: dict[int, float] = {}
    while len(expected) < len(lengths):
        running = [i for i, start in enumerate(starts) if start <= clock and i not in expected]
        if not running:
            clock = min(start for i, start in enumerate(starts) if i not in expected)
            continue
        context = sum(prompt + done[i] for i in running)
        clock += 0.004 + 0.0005 * len(running) + 2e-6 * context
        for i in running:
            done[i] += 1
            if done[i] == lengths[i]:
                expected[i] = clock
    # A response of the loop starts with the next whole step, and its context grows in steps.
    assert ends == pytest.approx([expected[i] for i in range(len(lengths))], rel=0.01)
    assert server.num_tokens == pytest.approx(sum(lengths))


def test_steps_and_seconds_are_inverse():
    speed = DecodeSpeed(0.01, 0.001, 1e-5)
    for steps in (0.0, 1.0, 1234.5):
        assert speed.steps(speed.seconds(steps, 7, 5000), 7, 5000) == pytest.approx(steps)


def test_an_update_of_the_weights_delays_what_runs_by_its_time_and_that_of_the_contexts():
    clock, end = Clock(), Event()
    server = Server(clock, DecodeSpeed(1.0, prefill_s_per_token=0.5), 2)
    server.start([Response(4, 10, end.happen)])  # 4 * 0.5 s for the prompt
    clock.call(5.0, lambda: server.update_weights(2.0, recomputes=True))  # 3 tokens are sampled: context 7
    clock.run(end)
    assert clock.now == pytest.approx(2.0 + 10.0 + 2.0 + 7 * 0.5)
    assert server.num_running == 0


def test_aborted_responses_never_end_and_others_go_on():
    clock, end, aborted = Clock(), Event(), Response(5, 50, lambda: pytest.fail("was aborted"))
    server = Server(clock, DecodeSpeed(0.0, per_response_s=1.0, per_context_token_s=0.0), 2)
    server.start([aborted, Response(5, 10, end.happen)])
    clock.call(8.0, lambda: server.abort([aborted]))  # 4 tokens each
    clock.run(end)
    server.advance()
    assert clock.now == pytest.approx(8.0 + 6.0)
    assert server.num_tokens == pytest.approx(4 + 10)
    assert server.num_free == 2


def test_verifiers_work_in_the_order_of_arrival():
    clock, ends = Clock(), []
    last = Event()
    verifiers = Verifiers(clock, 2)
    for index, seconds in enumerate([3.0, 1.0, 1.0, 2.0]):
        verifiers.verify(seconds, lambda index=index: ends.append((index, clock.now)))
    clock.call(9.0, last.happen)
    clock.run(last)
    assert ends == [(1, 1.0), (2, 2.0), (0, 3.0), (3, 4.0)]
