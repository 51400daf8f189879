"""Servers of another node, as rank 0 sees them: two ranks here are two threads, and their servers real processes."""

import os
import queue
import signal
import threading
from dataclasses import replace

import pytest

from megatron_prime.engines.sglang import server as sglang_server
from megatron_prime.engines.sglang.nodes import Nodes, start_everywhere
from megatron_prime.engines.sglang.server import ServerFailedError, answers
from megatron_prime.rollout.ranks import Ranks
from tests.engines.sglang.tiny_plan import tiny_plan
from tests.support import deadlines

NODES = Nodes((0, 2), ("127.0.0.1", "127.0.0.1"))
WORLD_SIZE = 3
"""Rank 1 is the second of the first node."""


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(sglang_server, "GRACE_S", 0.5)


class Job:
    """The ranks' gathers, each rank a thread."""

    def __init__(self):
        self.barrier = threading.Barrier(WORLD_SIZE)
        self.parts = [None] * WORLD_SIZE

    def ranks(self, rank):
        def gather(items):
            self.parts[rank] = items
            self.barrier.wait(20)
            parts = list(self.parts)
            self.barrier.wait(20)
            return parts

        return Ranks(rank, WORLD_SIZE, gather)

    def run(self, function):
        """function(rank, ranks) of every rank at once; the results by rank."""
        results = [queue.Queue() for _ in range(WORLD_SIZE)]
        for rank in range(WORLD_SIZE):
            threading.Thread(
                target=lambda rank=rank: results[rank].put(function(rank, self.ranks(rank))), daemon=True
            ).start()
        return [result.get(timeout=deadlines.seconds(30)) for result in results]


@pytest.fixture
def started(tmp_path, monkeypatch):
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    kept = []

    def start(mode="", **settings):
        plan = tiny_plan(mode, num_servers=2, **settings)
        kept.extend(
            Job().run(
                lambda rank, ranks: start_everywhere(
                    replace(plan), NODES, ranks, tmp_path / str(rank), lambda text: None, 20.0
                )
            )
        )
        return kept[0][0]

    start.kept = kept
    yield start
    for servers, node in kept:
        for server in servers:
            server.close()
        if node is not None:
            node.close()
            node.close()


def until(condition, seconds=60):
    return deadlines.wait_until(condition, seconds)


def test_the_first_ranks_of_nodes_are_found(monkeypatch):
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    found = Job().run(lambda rank, ranks: Nodes.find(ranks, local_rank=(0, 1, 0)[rank]))
    assert found == [NODES] * WORLD_SIZE


def test_rank_0_sees_the_servers_of_all_nodes_in_order(started):
    servers = started()
    assert [server.index for server in servers] == [0, 1, 2, 3]
    urls = [until(lambda s=server: s.url) for server in servers]
    assert len(set(urls)) == 4 and all(answers(url) for url in urls)
    assert [type(part).__name__ for _, part in started.kept] == ["NoneType", "NoneType", "NodeServers"]
    assert started.kept[1][0] == []
    started.kept[2][1].close()
    assert [answers(url) for url in urls] == [True, True, False, False]


def test_a_hanging_server_of_another_node_is_restarted(started):
    server = started()[3]
    before = until(lambda: server.url)
    server.restart()
    assert not answers(before)
    after = until(lambda: server.url)
    assert after != before and answers(after) and server.num_starts == 2


def test_a_killed_server_of_another_node_is_restarted(started):
    server = started()[2]
    before = until(lambda: server.url)
    os.killpg(started.kept[2][1]._servers[0].pid, signal.SIGKILL)
    assert until(lambda: server.url not in (None, before))
    server.raise_if_failed()


def test_a_server_that_never_starts_is_an_error(started):
    servers = started("dies", max_restarts=0)

    def failure():
        try:
            servers[3].raise_if_failed()
        except ServerFailedError as error:
            return str(error)
        return None

    assert "SGLang server 3 ended 1 times in a row" in until(failure)


def test_one_node_needs_no_store(tmp_path):
    plan = tiny_plan(num_servers=1)
    servers, node = start_everywhere(
        plan, Nodes((0,), ("127.0.0.1",)), Ranks(), tmp_path, lambda text: None, 5.0
    )
    assert node is None and len(servers) == 1
    servers[0].close()
