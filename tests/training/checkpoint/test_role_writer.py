"""A background write saves the state at its start; test_store.py has complete checkpoints."""

import gc
import multiprocessing
import os
import shutil
import signal
import sys

import pytest
import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync

from megatron_prime.parallel.platform import Platform, select_platform
from megatron_prime.parallel.topology import Topology
from megatron_prime.training.checkpoint import role_writer
from megatron_prime.training.checkpoint.fork_results import ForkResults
from megatron_prime.training.checkpoint.manifest import read_manifest, write_manifest
from megatron_prime.training.checkpoint.role_writer import RoleWriter

TOPOLOGY = Topology(
    Platform(torch.device("cpu"), "gloo", torch.float32, timeout=None), 0, 1, 1, 0, 1, 0, 1, 0, False
)


@pytest.fixture(scope="module", autouse=True)
def job():
    select_platform("cpu").start_process_group()


@pytest.mark.parametrize("in_background", [False, True])
def test_two_roles_written_at_once_keep_their_state(tmp_path, in_background):
    tensors = {role: torch.full((300, 7), value) for role, value in (("policy", 1.0), ("prm", 2.0))}
    writers = []
    for role, tensor in tensors.items():
        (tmp_path / role).mkdir()
        # Both have the same parameter name, as two models of one shape do.
        state = {"weight": ShardedTensor.from_rank_offsets("weight", tensor), "step": 5}
        writers.append(RoleWriter(state, tmp_path / role, TOPOLOGY))
    for writer in writers:
        writer.write(in_background)
    for tensor in tensors.values():
        tensor.zero_()
    for writer in reversed(writers):
        writer.finish()
        assert writer.is_done()
    for role, value in (("policy", 1.0), ("prm", 2.0)):
        template = {"weight": ShardedTensor.from_rank_offsets("weight", torch.empty(300, 7)), "step": None}
        loaded = dist_checkpointing.load(template, str(tmp_path / role))
        assert (loaded["weight"] == value).all()
        assert loaded["step"] == 5
    assert {path.suffix for path in tmp_path.glob("policy/__*")} == {".distcp", ".sums"}
    write_manifest(tmp_path)
    assert sum(name.endswith(".distcp") for name in read_manifest(tmp_path)) >= 2


@pytest.mark.parametrize("is_removed", [False, True])
def test_an_abandoned_write_fails_to_finish(tmp_path, is_removed):
    (tmp_path / "policy").mkdir()
    state = {"weight": ShardedTensor.from_rank_offsets("weight", torch.ones(4_000_000))}
    writer = RoleWriter(state, tmp_path / "policy", TOPOLOGY)
    writer.write(in_background=True)
    writer.abandon()
    assert writer.is_done()
    if is_removed:  # by rank 0, while this rank still waits
        shutil.rmtree(tmp_path / "policy")
    with pytest.raises(OSError, match="could not be written"):
        writer.finish()


@pytest.mark.parametrize("in_background", [False, True])
def test_a_writer_that_is_killed_ends_the_save(tmp_path, monkeypatch, in_background):
    """Megatron waits for it forever; a later save succeeds."""

    def killed(*arguments, **keywords):
        os.kill(os.getpid(), signal.SIGKILL)

    (tmp_path / "policy").mkdir()
    state = {"weight": ShardedTensor.from_rank_offsets("weight", torch.ones(9))}
    with monkeypatch.context() as patched:
        patched.setattr(FileSystemWriterAsync, "write_preloaded_data", killed)
        writer = RoleWriter(dict(state), tmp_path / "policy", TOPOLOGY)
        writer.write(in_background)
        with pytest.raises(OSError, match=r"could not be written to .* was killed by signal 9"):
            writer.finish()
    shutil.rmtree(tmp_path / "policy")
    (tmp_path / "policy").mkdir()
    writer = RoleWriter(state, tmp_path / "policy", TOPOLOGY)
    writer.write(in_background)
    writer.finish()


@pytest.mark.parametrize("name", ["common.pt", ".metadata", "metadata.json"])
def test_every_file_that_cannot_be_written_is_one_kind_of_error(name, tmp_path):
    """/dev/full is a disk without any space; torch reports it as a RuntimeError, others as an OSError."""
    folder = tmp_path / "checkpoints" / "step" / "policy"
    folder.mkdir(parents=True)
    # Megatron writes .metadata to a temporary file and renames that.
    for path in (folder / name, folder / f"{name}.tmp"):
        path.symlink_to("/dev/full")
    state = {"weight": ShardedTensor.from_rank_offsets("weight", torch.ones(9)), "step": 5}
    with pytest.raises(OSError, match="could not be written to"):
        writer = RoleWriter(state, folder, TOPOLOGY)
        writer.write(in_background=False)
        writer.finish()


def test_a_forked_writer_collects_no_garbage(tmp_path):
    """A collection could free GPU memory, which a fork must not do."""

    def leave():
        sys.exit(int(gc.isenabled()))

    work = (ForkResults(), leave, [], {}, tmp_path, 0)
    fork = multiprocessing.get_context("fork").Process(target=role_writer._write_alone, args=work)
    fork.start()
    fork.join()
    assert gc.isenabled() and fork.exitcode == 0
