"""No file of a checkpoint executes code when it is loaded, and everything that a run saves still loads."""

import pickle
import random
import shutil

import numpy as np
import pytest
import torch

from megatron_prime.conversion.dist_files import DistReader, append_chunk, append_empty_state, write_metadata
from megatron_prime.models.stored_pickles import load_plain, read_metadata, refuse_code


class Intruder:
    """An object whose unpickling creates a file."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return open, (str(self.mark), "w")


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "policy"
    folder.mkdir()
    tensor = torch.arange(6.0, dtype=torch.bfloat16).reshape(2, 3)
    with (folder / "__0_0.distcp").open("wb") as file:
        chunks = [append_chunk(file, "weight", (0, 0), tensor, 0), append_empty_state(file, "state")]
    write_metadata(folder, chunks, {"weight": ((2, 3), torch.bfloat16)}, {"schedule": {"num_steps": 3}})
    return folder


def _in_metadata(folder, mark):
    metadata = read_metadata(folder)
    metadata.planner_data = Intruder(mark)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))


def _in_object(folder, mark):
    metadata = read_metadata(folder)
    (location,) = [place for index, place in metadata.storage_data.items() if index.fqn == "state"]
    torch.save(Intruder(mark), folder / "evil.distcp")
    location.relative_path, location.offset = "evil.distcp", 0
    location.length = (folder / "evil.distcp").stat().st_size
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))


PLACES = {
    "metadata": _in_metadata,
    "stored object": _in_object,
    "common.pt": lambda folder, mark: torch.save({"a": Intruder(mark)}, folder / "common.pt"),
    "whole metadata": lambda folder, mark: (folder / ".metadata").write_bytes(pickle.dumps(Intruder(mark))),
    "old format of torch": lambda folder, mark: (folder / "common.pt").write_bytes(
        pickle.dumps(Intruder(mark))
    ),
}


def test_a_sound_folder_is_accepted(folder):
    refuse_code(folder)
    assert DistReader(folder).keys == ("weight",)


@pytest.mark.parametrize("place", PLACES)
def test_code_is_refused_and_not_executed(place, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # must not open the door
    PLACES[place](folder, tmp_path / "executed")
    with pytest.raises(ValueError, match=str(folder)):
        refuse_code(folder)
    if "metadata" in place:
        with pytest.raises(ValueError, match="cannot be read"):
            DistReader(folder)
    assert not (tmp_path / "executed").exists()


def test_random_states_load_and_code_beside_them_does_not(tmp_path):
    states = [
        {
            "torch": torch.get_rng_state(),
            "python": random.getstate(),
            "numpy": np.random.get_state(),
            "parallel": {},
        }
    ]
    torch.save(states, tmp_path / "rng.pt")
    (loaded,) = load_plain(tmp_path / "rng.pt")
    random.setstate(loaded["python"])
    np.random.set_state(loaded["numpy"])
    assert torch.equal(loaded["torch"], states[0]["torch"])
    torch.save([*states, Intruder(tmp_path / "executed")], tmp_path / "rng.pt")
    with pytest.raises(ValueError, match=r"rng\.pt cannot be loaded safely"):
        load_plain(tmp_path / "rng.pt")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("content", [b"", b"\x80", b"no pickle", b"\x80\x04K\x01.", b"cos\nsystem\n."])
def test_metadata_of_other_bytes_is_named(content, folder):
    (folder / ".metadata").write_bytes(content)
    with pytest.raises(ValueError, match=r"\.metadata cannot be read"):
        refuse_code(folder)


def test_a_folder_without_files_is_left_to_megatron(folder):
    shutil.rmtree(folder)
    folder.mkdir()
    refuse_code(folder)
