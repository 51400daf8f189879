"""No process passes for one that was proven to hold a version, at whatever moment it took the other's place."""

import pytest
import torch

from megatron_prime.config.tables.rollout import SGLangConfig
from megatron_prime.engines.sglang.client import RetryPolicy
from megatron_prime.engines.sglang.engine import SGLangEngine
from megatron_prime.engines.sglang.fleet import Fleet
from megatron_prime.engines.sglang.loader.signing import ForgedValueError, SignedStore
from megatron_prime.engines.sglang.versions import ForeignWeightsError, VersionNames, launch_name
from megatron_prime.engines.sglang.weights.shard_sync import ShardSync
from megatron_prime.engines.sglang.weights.source import WeightSource
from megatron_prime.resharding.layouts import EngineLayout
from megatron_prime.rollout.engine import NO_WEIGHTS, WeightSyncError
from megatron_prime.types import SamplingParams
from tests.engines.sglang.disk_push import disk_sync
from tests.engines.sglang.stand_in import StandIn, fingerprint, fused
from tests.engines.sglang.weights.shard_sync_worker import SMALL_BUCKET
from tests.support.one_rank import OneRank
from tests.support.sglang_live import live_prompts
from tests.support.tiny_models import save_tiny_model, tiny_model


def test_a_name_counts_once_it_is_proven_and_for_its_server_alone():
    names = VersionNames()
    name = names.new(0, 7)
    assert names.version_of(0, name) == NO_WEIGHTS
    names.prove(name)
    assert names.version_of(0, name) == 7
    with pytest.raises(ForeignWeightsError, match="both addresses lead to one server"):
        names.version_of(1, name)
    assert names.new(0, 7) != name


@pytest.mark.parametrize(
    "stated", [launch_name(), "default", "v1 of its operator"], ids=["launched", "default", "by its operator"]
)
def test_weights_of_the_start_are_no_weights(stated):
    names = VersionNames()
    names.see_first(0, "v1 of its operator")
    names.see_first(0, "seen later")
    assert names.version_of(0, stated) == NO_WEIGHTS


@pytest.mark.parametrize("stated", ["7", "evil", "", "7-0123456789abcdef", "seen later"])
def test_weights_of_somebody_else_are_an_error(stated):
    names = VersionNames()
    names.new(0, 7)
    names.see_first(0, "default")
    names.see_first(0, "seen later")
    with pytest.raises(ForeignWeightsError, match="which this run did not give to it"):
        names.version_of(0, stated)


class Bench:
    """A trainer of one process and two stand-in servers, which it attaches to or supervises."""

    def __init__(self, folder, transport, moves):
        save_tiny_model("qwen2", folder / "model")
        self.servers = [StandIn(folder / "model", index, moves) for index in range(2)]
        urls = tuple(server.url for server in self.servers)
        settings = SGLangConfig(urls=urls, startup_timeout_s=20, control_timeout_s=20)
        self.engine = SGLangEngine(
            folder / "model", device="cpu", dtype="fp32", seed=0, settings=settings, run_dir=folder
        )
        if moves:
            self.engine.fleet = Fleet(self.servers, settings, self.engine.driver.ask_for_resync)
        self.policy = OneRank(folder / "model")
        if transport == "disk":
            self.sync = disk_sync(self.engine, self.policy, folder / "model", folder)
        else:
            source = WeightSource.build(
                self.policy.shape,
                self.policy.parameters,
                self.policy.topology,
                torch.float32,
                EngineLayout.consecutive(2, 1, first_rank=1),
                max_bucket_bytes=SMALL_BUCKET,
            )
            self.sync = ShardSync(self.engine, source, timeout_s=20)

    def push(self, version):
        """Push new weights, which depend on the version; return them as a server holds them."""
        state = tiny_model("qwen2", 100 + version).state_dict()
        self.policy.fill(state)
        self.sync.push(version)
        return fused(state, self.policy.shape)

    def close(self):
        self.engine.close()
        for server in self.servers:
            server.close()


@pytest.fixture
def bench(tmp_path, monkeypatch):
    monkeypatch.setattr("megatron_prime.engines.sglang.fleet._POLL_S", 0.02)
    monkeypatch.setattr(RetryPolicy, "wait_s", lambda policy, num_failures, draw: 0.02)
    made = []

    def make(transport, moves=False):
        made.append(Bench(tmp_path, transport, moves))
        return made[0]

    yield make
    for one in made:
        one.close()


@pytest.mark.slow
@pytest.mark.parametrize("transport", ["shards", "disk"])
@pytest.mark.parametrize("moves", [False, True], ids=["at its address", "elsewhere"])
def test_a_server_that_is_replaced_between_two_calls_gets_the_weights_again(bench, transport, moves):
    bench = bench(transport, moves)
    bench.push(0)
    for call in range(60):
        bench.servers[0].replace_before(call)
        wanted = bench.push(call + 1)
        rollouts = bench.engine.generate(live_prompts(4), SamplingParams(1), 2, 0)
        for server in bench.servers:
            held = dict(server.model.named_parameters())
            is_equal = all(torch.equal(held[name], tensor) for name, tensor in wanted.items())
            assert is_equal, (call, server.index, server.calls)
        assert {rollout.policy_version for rollout in rollouts} == {call + 1}
        assert {tuple(rollout.rollout_logprobs) for rollout in rollouts} == {
            (torch.tensor(fingerprint(wanted)).item(),)
        }
        if not bench.servers[0].is_replaced:
            break
    else:
        pytest.fail("a sync makes fewer calls")
    assert call >= 6, "there are calls of the sync and of the generation"


@pytest.mark.parametrize("transport", ["shards", "disk"])
def test_foreign_weights_end_the_rollout_and_the_sync(bench, transport):
    bench = bench(transport)
    bench.push(1)
    bench.servers[1].version = "evil"
    with pytest.raises(ForeignWeightsError, match="server 1 has weights named 'evil'"):
        bench.engine.generate(live_prompts(4), SamplingParams(1), 2, 0)
    answer = bench.servers[0].answer

    def renamed(path, body):
        fields = answer(path, body)
        if path.startswith("/update_weights"):
            bench.servers[0].version = "evil"
        return fields

    bench.servers[0].answer = renamed
    with pytest.raises((ForeignWeightsError, WeightSyncError), match="server 0 has weights named 'evil'"):
        bench.push(2)


@pytest.mark.parametrize(
    ("name", "reader"),
    [
        ("hello/0", "trainer"),
        ("report/1", "trainer"),
        ("go", "server"),
        ("/0/0", "server"),
        ("/0/1", "trainer"),
    ],
    ids=["hello", "report", "go", "address of a rank", "address of a server"],
)
def test_a_value_of_somebody_else_in_the_store_ends_the_sync(bench, monkeypatch, name, reader):
    bench = bench("shards")
    store = SignedStore if reader == "trainer" else bench.servers[0]._loader.signing.SignedStore
    read = store.get
    bench.sync._coordinator._timeout_s = 4.0  # The trainer waits that long for a server that has given up.

    def read_what_was_replaced(self, key):
        if key == name or (key != "go" and key.endswith(name)):
            # The reader polls. If the value were written between this check and the read below, it would be read
            # unreplaced, and a reader that has seen it does not ask again.
            if not self.raw.check([self._prefix + key]):
                return None
            self.raw.set(self._prefix + key, self.raw.get(self._prefix + key).swapcase())
        return read(self, key)

    monkeypatch.setattr(store, "get", read_what_was_replaced)
    with pytest.raises(ForgedValueError, match="somebody else writes to the store"):
        bench.push(1)
    assert bench.sync.stats.num_attempts == 1
    with pytest.raises(WeightSyncError, match="can't generate"):
        bench.engine.generate(live_prompts(4), SamplingParams(1), 2, 0)
