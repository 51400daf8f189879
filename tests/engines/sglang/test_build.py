"""The SGLang engine is built with the configured weight transport and the layout that belongs to it."""

from types import SimpleNamespace

import pytest

from megatron_prime.config.loading import load_config
from megatron_prime.engines.sglang.build import _engine_layout, build_sglang_engine
from megatron_prime.engines.sglang.nodes import Nodes
from megatron_prime.engines.sglang.weights.disk_sync import DiskSync
from megatron_prime.engines.sglang.weights.shard_sync import ShardSync
from megatron_prime.rollout.engine import NO_WEIGHTS
from megatron_prime.rollout.ranks import Ranks
from tests.support.one_rank import OneRank
from tests.support.tiny_models import save_tiny_model

URLS = '["http://127.0.0.1:9", "http://127.0.0.1:10"]'


@pytest.mark.parametrize(
    ("transport", "sync_class", "backend"),
    [("shards", ShardSync, "gloo"), ("ipc", ShardSync, "ipc"), ("disk", DiskSync, None)],
)
def test_the_transport_decides_the_weight_sync(tmp_path, minimal_toml, transport, sync_class, backend):
    save_tiny_model("qwen2", tmp_path / "model")
    config = load_config(
        minimal_toml,
        [
            f"model.path={tmp_path / 'model'}",
            f"run_dir={tmp_path / 'run'}",
            "rollout.engine=sglang",
            f"rollout.sglang.urls={URLS}",
            f"rollout.sglang.weight_transport={transport}",
        ],
    )
    policy = OneRank(tmp_path / "model")
    parts = build_sglang_engine(config, policy.topology, Ranks())
    try:
        assert parts.engine.policy_version == NO_WEIGHTS
        assert (
            parts.startup_note == "waiting for the SGLang servers (http://127.0.0.1:9, http://127.0.0.1:10)"
        )
        sync = parts.make_weight_sync(policy)
        assert isinstance(sync, sync_class)
        if isinstance(sync, ShardSync):
            assert sync.source.sender.backend == backend
        sync.close()
    finally:
        parts.engine.close()


def test_servers_on_gpus_of_the_trainer_are_refused_before_they_start_if_they_are_to_sample_ahead(
    tmp_path, minimal_toml
):
    save_tiny_model("qwen2", tmp_path / "model")
    overrides = [
        *(f"model.path={tmp_path / 'model'}", f"run_dir={tmp_path / 'run'}", "rollout.engine=sglang"),
        *(f"rollout.sglang.urls={URLS}", "rollout.sglang.colocated=true", "rollout.max_staleness=1"),
    ]
    config = load_config(minimal_toml, overrides)
    with pytest.raises(ValueError, match=r"rollout\.max_staleness = 1 .* share GPUs with it"):
        build_sglang_engine(config, OneRank(tmp_path / "model").topology, Ranks())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("transport", "local_world_size", "expected"),
    [
        ("shards", None, ((4, 5), (6, 7))),
        ("ipc", None, ((0, 1), (2, 3))),
        ("ipc", "2", ((0, 1), (2, 3))),
    ],
)
def test_servers_are_beside_training_ranks_or_after_them(monkeypatch, transport, local_world_size, expected):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if local_world_size:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", local_world_size)
    settings = SimpleNamespace(weight_transport=transport, tensor=2, expert=1, gpu_ids=())
    first_ranks = (0, 2) if local_world_size else (0,)
    engine = SimpleNamespace(num_servers=2, nodes=Nodes(first_ranks, ("127.0.0.1",) * len(first_ranks)))
    layout = _engine_layout(settings, SimpleNamespace(world_size=4), engine)
    assert layout.ranks == expected


@pytest.mark.parametrize(
    ("gpu_ids", "names", "expected"),
    [
        ((0, 1), (), (0, 1)),
        ((0, 1), ("0", "1", "2", "3"), (0, 1)),
        ((2, 3), ("2", "3", "4", "5"), (0, 1)),
        ((5, 4), ("2", "3", "4", "5"), (3, 2)),
        ((6, 7), ("2", "3", "4", "5", "6", "7"), (0, 1)),
    ],
)
def test_a_gpu_is_shared_with_the_rank_that_uses_it(monkeypatch, gpu_ids, names, expected):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    settings = SimpleNamespace(weight_transport="ipc", tensor=2, expert=1, gpu_ids=gpu_ids)
    nodes = Nodes((0,), ("127.0.0.1",))
    engine = SimpleNamespace(num_servers=1, nodes=nodes, first_node_gpus=names)
    assert _engine_layout(settings, SimpleNamespace(world_size=4), engine).ranks == (expected,)
