"""Headers that are read without any framework, as safetensors writes them, and files that are refused."""

import json

import pytest
import torch
from safetensors.torch import save_file

from megatron_prime.hf.headers import (
    INDEX_NAME,
    SINGLE_NAME,
    TensorHeader,
    misfit,
    read_headers,
    weight_file_names,
)
from tests.support.sparse_weights import write_file

SHAPES = {"a": (2, 3), "b": (4,)}


def test_headers_are_those_that_safetensors_writes(tmp_path):
    tensors = {
        "x": torch.zeros(3, 2),
        "scalar": torch.zeros((), dtype=torch.bfloat16),
        "empty": torch.zeros(0, 4),
        "n": torch.zeros(5, dtype=torch.int64),
        "eight": torch.zeros(3, dtype=torch.float8_e4m3fn),
    }
    save_file(tensors, tmp_path / SINGLE_NAME, metadata={"format": "pt"})
    assert read_headers(tmp_path) == {
        "x": TensorHeader(SINGLE_NAME, "F32", (3, 2)),
        "scalar": TensorHeader(SINGLE_NAME, "BF16", ()),
        "empty": TensorHeader(SINGLE_NAME, "F32", (0, 4)),
        "n": TensorHeader(SINGLE_NAME, "I64", (5,)),
        "eight": TensorHeader(SINGLE_NAME, "F8_E4M3", (3,)),
    }


def test_the_index_names_the_file_of_each_tensor(tmp_path):
    write_file(tmp_path / "1.safetensors", {"a": (2,)})
    write_file(tmp_path / "2.safetensors", {"b": (3,), "not_in_the_index": (1,)})
    weight_map = {"a": "1.safetensors", "b": "2.safetensors"}
    (tmp_path / INDEX_NAME).write_text(json.dumps({"weight_map": weight_map}))
    assert {name: header.file_name for name, header in read_headers(tmp_path).items()} == weight_map


def test_other_files_are_no_part_of_a_checkpoint(tmp_path):
    with pytest.raises(ValueError, match=f"has neither {INDEX_NAME} nor {SINGLE_NAME}$"):
        weight_file_names(tmp_path)
    (tmp_path / "original").mkdir()
    for other in (
        "consolidated.safetensors",
        "adapter_model.safetensors",
        "pytorch_model.bin",
        "original/model.safetensors",
    ):
        (tmp_path / other).write_bytes(b"other")
    with pytest.raises(
        ValueError, match=r"adapter_model.safetensors, consolidated.safetensors is in another format"
    ):
        read_headers(tmp_path)
    write_file(tmp_path / SINGLE_NAME, {"a": (2,)})
    assert weight_file_names(tmp_path) == [SINGLE_NAME]
    assert set(read_headers(tmp_path)) == {"a"}
    write_file(tmp_path / "1.safetensors", {"b": (2,)})
    (tmp_path / INDEX_NAME).write_text(json.dumps({"weight_map": {"b": "1.safetensors"}}))
    assert weight_file_names(tmp_path) == ["1.safetensors"]
    assert set(read_headers(tmp_path)) == {"b"}


@pytest.mark.parametrize("content", ["{", "[]", '{"weight_map": [1]}', "{}", "version https://git-lfs"])
def test_a_damaged_index_is_refused(content, tmp_path):
    write_file(tmp_path / SINGLE_NAME, {"a": (2,)})
    (tmp_path / INDEX_NAME).write_text(content)
    with pytest.raises(ValueError, match=f"{INDEX_NAME} is not a safetensors index"):
        read_headers(tmp_path)


def _header(entries: object) -> bytes:
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text


DAMAGED = {
    "deep header": (lambda data: (40_000).to_bytes(8, "little") + b"[" * 40_000, "its header is not valid"),
    "empty file": (lambda data: b"", "it ends within its header"),
    "cut in the length": (lambda data: data[:7], "it ends within its header"),
    "cut in the header": (lambda data: data[:40], "it ends within its header"),
    "cut in the data": (lambda data: data[:-3], "3 of 20 bytes of its tensors are missing"),
    "header alone": (lambda data: data[:-20], "20 of 20 bytes of its tensors are missing"),
    "data appended": (lambda data: data + b"xx", "2 bytes follow its tensors"),
    "Git LFS pointer": (lambda data: b"version https://git-lfs.github.com/spec/v1\n", "run `git lfs pull`"),
    "web page": (lambda data: b"<!DOCTYPE html><html>", "it ends within its header"),
    "no JSON": (lambda data: (4).to_bytes(8, "little") + b"{{{{", "Expecting property name"),
    "a list": (lambda data: _header([1]), "its header is not valid"),
    "no offsets": (lambda data: _header({"a": {"dtype": "F32", "shape": [1]}}), "its header is not valid"),
    "wrong size": (
        lambda data: _header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}) + b"1234",
        "a of shape (2,) and dtype F32 cannot have 4 bytes",
    ),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_file_is_refused(case, tmp_path):
    damage, message = DAMAGED[case]
    path = write_file(tmp_path / SINGLE_NAME, SHAPES)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"model\.safetensors is ") as refused:
        read_headers(tmp_path)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("present", "dtype", "fault"),
    [
        (SHAPES, "BF16", None),
        (SHAPES | {"lm_head.weight": (9,), "x.rotary_emb.inv_freq": (1,)}, "BF16", None),
        ({"a": (2, 3)}, "BF16", "missing (1): b"),
        (SHAPES | {"c": (1,)}, "BF16", "unexpected (1): c"),
        (SHAPES | {"b": (5,)}, "BF16", "wrong shape (1): b is (5,) and should be (4,)"),
        (SHAPES, "F8_E4M3", "not F32, F16, BF16 (2): a is F8_E4M3, b is F8_E4M3"),
    ],
)
def test_a_misfit_names_the_tensors(present, dtype, fault, tmp_path):
    write_file(tmp_path / SINGLE_NAME, present, dtype)
    assert misfit(read_headers(tmp_path), SHAPES) == fault
