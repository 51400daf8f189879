"""No file of a checkpoint executes code when it is loaded, and everything that a run saves still loads."""

import dataclasses
import enum
import io
import pickle
import random
import shutil
import sys
import types
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import pytest
import torch
from megatron.core.dist_checkpointing.strategies import torch as megatron_strategies
from torch.distributed.checkpoint import metadata as dcp_metadata
from torch.distributed.checkpoint import planner as dcp_planner
from torch.distributed.checkpoint.filesystem import _StoragePrefix
from torch.distributed.checkpoint.metadata import MetadataIndex, StorageMeta

from megatron_prime.conversion.dist_files import DistReader, append_chunk, append_empty_state, write_metadata
from megatron_prime.models.stored_pickles import UnknownContentError, load_plain, read_metadata, refuse_code

STATE = "decoder.layers.0._extra_state"


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
        chunks = [append_chunk(file, "weight", (0, 0), tensor, 0), append_empty_state(file, STATE)]
    write_metadata(folder, chunks, {"weight": ((2, 3), torch.bfloat16)}, {"schedule": {"num_steps": 3}})
    return folder


def _describe(folder, change):
    """Rewrite .metadata after a change of its content."""
    metadata = read_metadata(folder)
    change(metadata)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))


def _store(folder, obj, name="other.distcp"):
    """Let the layer's state be another object, in a file of its own."""
    torch.save(obj, folder / name)

    def change(metadata):
        location = metadata.storage_data[MetadataIndex(STATE)]
        location.relative_path, location.offset = name, 0
        location.length = (folder / name).stat().st_size

    _describe(folder, change)


def _bytes_of(data):
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _saved(obj):
    file = io.BytesIO()
    torch.save(obj, file)
    return file


def _global(module_name, global_name):
    return b"c" + f"{module_name}\n{global_name}\n".encode()


def _text(text):
    return b"X" + len(text).to_bytes(4, "little") + text.encode()


def _attribute(of, name):
    """The opcodes of getattr(of, name)."""
    return _global("builtins", "getattr") + b"(" + of + _text(name) + b"tR"


ENUM = _global(dcp_planner.__name__, "WriteItemType")
SUBCLASSES = _attribute(ENUM, "__class__")
MRO = _attribute(ENUM, "mro")
BY_HAND = {
    "os.system": _global("os", "system") + b"(" + _text("true") + b"tR.",
    "posix.system by name of Python 2": _global("__builtin__", "eval") + b"(" + _text("1") + b"tR.",
    "attribute of an enum": SUBCLASSES + b".",
    "method of an enum": MRO + b"(tR.",
    "attribute of a class": _attribute(_global("torch", "Size"), "COUNT") + b".",
    "attribute of an attribute": _attribute(_attribute(ENUM, "TENSOR"), "__class__") + b".",
    "enum's private attribute": _attribute(ENUM, "_member_map_") + b".",
    "dotted name": b"\x80\x04" + _text("torch.serialization") + _text("_get_layout.__globals__") + b"\x93.",
    "class changed": _global(dcp_metadata.__name__, "MetadataIndex")
    + b"N}"
    + _text("__hash__")
    + _global("builtins", "getattr")
    + b"s\x86b.",
    "function changed": _global("builtins", "getattr") + b"}" + _text("a") + b"K\x01sb.",
    "member called": _attribute(ENUM, "TENSOR") + b"(K\x01tR.",
    "extension of copyreg": b"\x80\x02\x82\x01.",
    "persistent object": b"Pname\n.",
    "storage from a pickle": _global("torch.storage", "_load_from_bytes")
    + b"(B"
    + len(pickle.dumps(print)).to_bytes(4, "little")
    + pickle.dumps(print)
    + b"tR.",
}
"""Pickles without a harmful effect here that reach for more than the format's objects."""
PLACES = {
    "metadata": lambda folder, bad: _describe(folder, lambda data: setattr(data, "planner_data", bad)),
    "metadata's prefix": lambda folder, bad: _describe(
        folder, lambda data: setattr(data, "storage_data", {MetadataIndex("weight"): _StoragePrefix(bad)})
    ),
    "whole metadata": lambda folder, bad: (folder / ".metadata").write_bytes(pickle.dumps(bad)),
    "stored object": _store,
    "stored object in a list": lambda folder, bad: _store(folder, [bad]),
    "bytes of a layer's state": lambda folder, bad: _store(folder, [_bytes_of(pickle.dumps(bad))]),
    "bytes of a layer's state in a dict": lambda folder, bad: _store(
        folder, {"a": (_bytes_of(pickle.dumps({"recipe": bad})),)}
    ),
    "file of a layer's state": lambda folder, bad: _store(folder, [_saved(bad)]),
    "file of a layer's state, as a pickle": lambda folder, bad: _store(
        folder, [io.BytesIO(pickle.dumps(bad))]
    ),
    "common.pt": lambda folder, bad: torch.save({"a": bad}, folder / "common.pt"),
    "common.pt in torch's old format": lambda folder, bad: torch.save(
        {"a": bad}, folder / "common.pt", _use_new_zipfile_serialization=False
    ),
    "common.pt as a pickle": lambda folder, bad: (folder / "common.pt").write_bytes(pickle.dumps(bad)),
}


def test_a_sound_folder_is_accepted(folder):
    refuse_code(folder)
    assert DistReader(folder).keys == ("weight",)


@pytest.mark.parametrize("place", PLACES)
def test_code_is_refused_and_not_executed(place, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # must not open the door
    PLACES[place](folder, Intruder(tmp_path / "executed"))
    with pytest.raises(ValueError, match=str(folder)):
        refuse_code(folder)
    if "metadata" in place:
        with pytest.raises(ValueError, match="cannot be read"):
            DistReader(folder)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("place", [place for place in PLACES if "as a pickle" not in place])
def test_content_of_another_version_is_told_from_damage(place, folder):
    PLACES[place](folder, Fraction(1, 2))
    with pytest.raises(UnknownContentError, match=r"fractions\.Fraction|Unsupported operand|more than"):
        refuse_code(folder)


@pytest.mark.parametrize("name", [".metadata", "common.pt", "__0_0.distcp"])
def test_damage_is_told_from_content_of_another_version(name, folder):
    torch.save({"a": 1}, folder / "common.pt")
    for content in (b"", b"\x80", (folder / name).read_bytes()[:40], b"no pickle"):
        (folder / name).write_bytes(content)
        with pytest.raises(ValueError) as caught:
            refuse_code(folder)
        assert not isinstance(caught.value, UnknownContentError), content


@pytest.mark.parametrize("case", BY_HAND)
def test_pickles_made_by_hand_are_refused(case, folder):
    (folder / ".metadata").write_bytes(BY_HAND[case])
    with pytest.raises(ValueError, match=r"\.metadata cannot be read: \w+"):
        read_metadata(folder)
    assert pickle.loads(pickle.dumps(StorageMeta())) is not None, "the classes are unchanged"


def _by_name(member, _protocol):
    return getattr, (type(member), member.name)


def _by_value(member, _protocol):
    return type(member), (member.value,)


@pytest.mark.parametrize("reduce", [_by_name, _by_value])
def test_enums_are_read_in_the_form_of_every_python(reduce, folder, monkeypatch):
    """Some versions of Python 3.11 pickle a member by its name, with getattr."""
    for kind in (dcp_metadata._MEM_FORMAT_ENCODING, dcp_planner.WriteItemType):
        monkeypatch.setattr(kind, "__reduce_ex__", reduce)
    _describe(folder, lambda data: setattr(data, "planner_data", {"kind": dcp_planner.WriteItemType.TENSOR}))
    assert (b"getattr" in (folder / ".metadata").read_bytes()) == (reduce is _by_name)
    refuse_code(folder)
    read = read_metadata(folder)
    assert read.planner_data == {"kind": dcp_planner.WriteItemType.TENSOR}
    assert read.state_dict_metadata["weight"].properties.dtype == torch.bfloat16


class _FormatHelper(NamedTuple):
    """A copy of Transformer Engine's class, which runs on GPUs only."""

    max_fwd: float
    max_bwd: float


class Format(enum.Enum):
    """A copy of Transformer Engine's class."""

    HYBRID = _FormatHelper(448, 57344)


@dataclasses.dataclass
class DelayedScaling:
    """A copy of Transformer Engine's class, with some of its fields."""

    fp8_format: Format = Format.HYBRID
    amax_history_len: int = 1024


@pytest.fixture
def layer_state(monkeypatch):
    """The state that Transformer Engine 2 stores of a layer with delayed FP8."""
    module = types.ModuleType("transformer_engine.common.recipe")
    monkeypatch.setitem(sys.modules, "transformer_engine", types.ModuleType("transformer_engine"))
    monkeypatch.setitem(
        sys.modules, "transformer_engine.common", types.ModuleType("transformer_engine.common")
    )
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for kind in (_FormatHelper, Format, DelayedScaling):
        monkeypatch.setattr(kind, "__module__", module.__name__)
        setattr(module, kind.__name__, kind)
    scales = {"scale_fwd": torch.ones(3), "amax_history_fwd": torch.zeros(4, 3)}
    return scales | {
        "recipe": DelayedScaling(),
        "extra_fp8_variables": {"fp8_checkpoint": True, "name": (1, 2.5)},
    }


@pytest.mark.parametrize(
    "form",
    {
        "tensor of a pickle": lambda state: _bytes_of(pickle.dumps(state)),
        "no FP8": lambda _: torch.empty(0, dtype=torch.uint8),
        "nothing": lambda _: None,
        "empty file": lambda _: io.BytesIO(),
        # Transformer Engine 1 stores no recipe.
        "file": lambda state: _saved({"scale_fwd": state["scale_fwd"]}),
    }.items(),
    ids=lambda form: form[0],
)
def test_states_of_layers_are_accepted(form, layer_state, folder):
    _store(folder, [form[1](layer_state)])
    refuse_code(folder)


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


@pytest.mark.parametrize(
    "content", [b"", b"\x80", b"no pickle", b"\x80\x04K\x01.", b"cos\nsystem\n.", b"PK\x03\x04"]
)
def test_metadata_of_other_bytes_is_named(content, folder):
    (folder / ".metadata").write_bytes(content)
    with pytest.raises(ValueError, match=r"\.metadata cannot be read"):
        refuse_code(folder)


def test_a_folder_without_files_is_left_to_megatron(folder):
    shutil.rmtree(folder)
    folder.mkdir()
    refuse_code(folder)


def test_metadata_of_older_versions_of_megatron_is_accepted(folder):
    def change(metadata):
        metadata.all_local_plans = [megatron_strategies.MCoreSavePlan()]

    _describe(folder, change)
    refuse_code(folder)
    older = megatron_strategies.MCoreMetadata()
    vars(older).update(vars(read_metadata(folder)))
    (folder / ".metadata").write_bytes(pickle.dumps(older))
    refuse_code(folder)


def test_metadata_of_older_versions_without_content_is_named(folder):
    (folder / ".metadata").write_bytes(pickle.dumps(megatron_strategies.MCoreMetadata()))
    with pytest.raises(ValueError, match="no description of a checkpoint"):
        refuse_code(folder)
