"""The benchmark of object collectives counts what its ranks send, and compares two versions of a round each."""

import socket

from benchmarks import object_collectives as benchmark


def test_sent_bytes_are_those_of_this_process_s_connections():
    before = benchmark.bytes_sent()
    with socket.create_server(("127.0.0.1", 0)) as server:
        with socket.create_connection(server.getsockname()) as here, server.accept()[0] as there:
            here.sendall(b"x" * 50_000)
            while len(there.recv(50_000, socket.MSG_PEEK | socket.MSG_WAITALL)) < 50_000:
                continue
            assert benchmark.bytes_sent() - before == 50_000
        assert benchmark.bytes_sent() == before, "closed connections do not count"


def test_responses_have_the_requested_size():
    rollouts = benchmark.sampled_responses(17, 5)
    assert len(rollouts) == 17 and {len(rollout.response_ids) for rollout in rollouts} == {5}
    assert len({rollout.prompt.index for rollout in rollouts}) == 3


def test_a_table_has_each_round_and_the_spread_of_the_ratios():
    def found(seconds, sent):
        return {part: {"seconds": seconds, "sent": sent, "peak": 2**20} for part in benchmark.PART_NAMES}

    rounds = {"before": [found(2.0, 4e6), found(4.0, 4e6)], "after": [found(1.0, 1e6), found(1.0, 1e6)]}
    rows = benchmark.table_rows(2, rounds)
    assert len(rows) == 3 * len(benchmark.PART_NAMES)
    assert rows[:3] == [
        "| 2 | sampled responses | before | 4 | 2, 4 | 1 |",
        "| 2 | sampled responses | after | 1 | 1, 1 | 1 |",
        "| 2 | sampled responses | after / before | 0.250 | 0.38 (0.25 to 0.50) | |",
    ]
    assert len(benchmark.table_rows(2, {"after": rounds["after"]})) == len(benchmark.PART_NAMES)
