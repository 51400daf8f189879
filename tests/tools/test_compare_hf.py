"""The comparison of two checkpoints reports every kind of difference, and nothing for equal checkpoints."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.support.forked_commands import FORKED

TOOL = Path(__file__).parents[2] / "tools" / "compare_hf.py"


@pytest.fixture
def tensors():
    generator = torch.Generator().manual_seed(0)
    return {
        "a.weight": torch.randn(5000, 3, generator=generator),
        "b.bias": torch.tensor([1.0, float("nan"), 3.0]),
    }


def compare(tmp_path, first, second, *arguments):
    for name, content in (("first", first), ("second", second)):
        (tmp_path / name).mkdir()
        save_file(content, tmp_path / name / "model.safetensors")
    return run(tmp_path / "first", tmp_path / "second", *arguments)


def run(*arguments):
    done = subprocess.run(
        [sys.executable, *FORKED, str(TOOL), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def test_equal_checkpoints_agree_including_nan(tmp_path, tensors):
    assert compare(tmp_path, tensors, tensors)[:2] == (0, "0 of 2 tensors differ\n")


def test_a_single_bit_is_found_and_a_tolerance_accepts_it(tmp_path, tensors):
    changed = tensors["a.weight"].clone()
    changed[4999, 2] = torch.nextafter(changed[4999, 2], torch.tensor(9.0))
    code, output, _ = compare(tmp_path, tensors, tensors | {"a.weight": changed})
    assert code == 1
    assert output.startswith("a.weight: 1 elements differ, by up to ")
    assert run(tmp_path / "first", tmp_path / "second", "--tolerance", "1e-6")[0] == 0


def test_a_nan_in_one_checkpoint_is_never_within_the_tolerance(tmp_path, tensors):
    lost = tensors["a.weight"].clone()
    lost[0, 0] = float("nan")
    code, output, _ = compare(tmp_path, tensors, tensors | {"a.weight": lost}, "--tolerance", "1e9")
    assert code == 1 and "a.weight: 1 elements differ, by up to nan" in output


def test_missing_tensors_shapes_and_dtypes_are_reported(tmp_path, tensors):
    other = {"a.weight": tensors["a.weight"].bfloat16(), "c.bias": torch.zeros(1)}
    code, output, _ = compare(tmp_path, tensors, other)
    assert code == 1
    assert "a.weight: (5000, 3) torch.float32 and (5000, 3) torch.bfloat16" in output
    assert f"b.bias: only in {tmp_path / 'first'}" in output
    assert f"c.bias: only in {tmp_path / 'second'}" in output
    assert output.endswith("3 of 3 tensors differ\n")


def test_a_folder_that_is_not_a_checkpoint_is_refused(tmp_path):
    code, _, error = run(tmp_path / "nowhere", tmp_path)
    assert code == 2 and "nowhere is not a directory" in error
