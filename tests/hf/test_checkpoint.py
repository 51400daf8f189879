"""Checkpoints are read back bit-equal, load in transformers, are complete or absent, and errors are reported."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from megatron_prime.hf.checkpoint import (
    INDEX_NAME,
    SINGLE_NAME,
    HFCheckpointReader,
    HFCheckpointWriter,
    TensorSpec,
)
from megatron_prime.hf.mapping import ModelShape, hf_tensors


def make_tensors(dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    shapes = {"a.weight": (6, 4), "a.bias": (6,), "b.weight": (3, 5), "odd": (7,)}
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


def specs_of(tensors):
    return {name: TensorSpec(tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}


def write_all(path, tensors, **options):
    with HFCheckpointWriter(path, specs_of(tensors), **options) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor)


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory):
    config = transformers.Qwen2Config(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
    )
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    path = tmp_path_factory.mktemp("hf") / "tiny"
    model.save_pretrained(path, max_shard_size="4KB")
    (path / "tokenizer.json").write_text("{}")
    return path, model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("max_shard_bytes", [1, 60, 10**9])
def test_written_tensors_come_back_bit_equal(tmp_path, dtype, max_shard_bytes):
    tensors = make_tensors(dtype)
    write_all(tmp_path / "out", tensors, max_shard_bytes=max_shard_bytes)
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert (len(files) == 1) == (max_shard_bytes == 10**9)
    assert (tmp_path / "out" / INDEX_NAME).exists() == (len(files) > 1)
    loaded = {name: tensor for file in files for name, tensor in load_file(file).items()}
    reader = HFCheckpointReader(tmp_path / "out")
    assert reader.tensor_names == tuple(sorted(tensors))
    for name, tensor in tensors.items():
        assert torch.equal(loaded[name], tensor) and loaded[name].dtype == dtype
        assert torch.equal(reader.read_slice(name, 0, 1, 2), tensor[1:3])
        assert reader.dtype_of(name) == dtype
    assert torch.equal(reader.read_slice("a.weight", 1, 1, 2), tensors["a.weight"][:, 1:3])


def test_tensors_are_written_in_any_order_and_with_any_strides(tmp_path):
    tensors = make_tensors()
    with HFCheckpointWriter(tmp_path / "out", specs_of(tensors), max_shard_bytes=100) as writer:
        for name, tensor in reversed(tensors.items()):
            writer.write(name, tensor.T.contiguous().T if tensor.ndim == 2 else tensor)
    reader = HFCheckpointReader(tmp_path / "out")
    for name, tensor in tensors.items():
        assert torch.equal(reader.read_slice(name, 0, 0, len(tensor)), tensor)


def test_a_transformers_checkpoint_round_trips_and_loads(tiny_model, tmp_path):
    source, model = tiny_model
    reader = HFCheckpointReader(source)
    shape = ModelShape.from_hf_config(json.loads((source / "config.json").read_text()))
    reader.check_against(hf_tensors(shape))
    specs = {name: TensorSpec(dims, reader.dtype_of(name)) for name, dims in hf_tensors(shape).items()}
    with HFCheckpointWriter(tmp_path / "out", specs, max_shard_bytes=5000, companions_from=source) as writer:
        for name, dims in hf_tensors(shape).items():
            writer.write(name, reader.read_slice(name, 0, 0, dims[0]))
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 1
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "{}"
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    for (name, tensor), other in zip(model.state_dict().items(), loaded.state_dict().values(), strict=True):
        assert torch.equal(tensor, other), name
    tokens = torch.arange(10)[None]
    assert torch.equal(model(tokens).logits, loaded(tokens).logits)


def test_config_takes_the_dtype_of_the_weights(tiny_model, tmp_path):
    source, _ = tiny_model
    for key, dtype in (("dtype", torch.bfloat16), ("torch_dtype", torch.float16)):
        config = json.loads((source / "config.json").read_text())
        config[key] = config.pop("dtype")
        (tmp_path / key).mkdir()
        (tmp_path / key / "config.json").write_text(json.dumps(config))
        out = tmp_path / f"out-{key}"
        write_all(out, make_tensors(dtype), companions_from=tmp_path / key)
        expected = str(dtype).removeprefix("torch.")
        assert json.loads((out / "config.json").read_text()) == config | {key: expected}


def test_a_failed_write_leaves_nothing(tmp_path):
    tensors = make_tensors()
    with (
        pytest.raises(
            ValueError, match=r"3 tensors of .*out were not written, among them a.bias, b.weight, odd"
        ),
        HFCheckpointWriter(tmp_path / "out", specs_of(tensors)) as writer,
    ):
        writer.write("a.weight", tensors["a.weight"])
    with pytest.raises(KeyboardInterrupt), HFCheckpointWriter(tmp_path / "out", specs_of(tensors)) as writer:
        writer.write("a.weight", tensors["a.weight"])
        raise KeyboardInterrupt
    with pytest.raises(ValueError, match=r"has no config\.json"):
        write_all(tmp_path / "out", tensors, companions_from=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_directory_appears_only_at_the_end(tmp_path):
    tensors = make_tensors()
    with HFCheckpointWriter(tmp_path / "out", specs_of(tensors)) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor)
        assert not (tmp_path / "out").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_writer_reports_invalid_arguments(tmp_path):
    tensors = make_tensors()
    with pytest.raises(ValueError, match="exists already"):
        HFCheckpointWriter(tmp_path, specs_of(tensors))
    with pytest.raises(ValueError, match=r"n: dtype torch\.int64 cannot be written"):
        HFCheckpointWriter(tmp_path / "out", {"n": TensorSpec((1,), torch.int64)})
    for name, tensor, message in [
        ("c", tensors["odd"], "c is not one of the tensors announced"),
        ("odd", tensors["odd"].double(), "odd is .*float64, but .* was announced"),
        ("odd", tensors["odd"][:3], r"odd is \(3,\)"),
    ]:
        with (
            pytest.raises(ValueError, match=message),
            HFCheckpointWriter(tmp_path / "o", specs_of(tensors)) as writer,
        ):
            writer.write(name, tensor)
    with (
        pytest.raises(ValueError, match="odd was written already"),
        HFCheckpointWriter(tmp_path / "o", specs_of(tensors)) as writer,
    ):
        writer.write("odd", tensors["odd"])
        writer.write("odd", tensors["odd"])


def test_check_against_names_everything(tmp_path):
    tensors = make_tensors() | {
        "lm_head.weight": torch.zeros(2, 2),
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(2),
    }
    save_file(tensors, tmp_path / SINGLE_NAME)
    reader = HFCheckpointReader(tmp_path)
    fitting = {name: tuple(tensor.shape) for name, tensor in make_tensors().items()}
    reader.check_against(fitting)
    expected = {name: dims for name, dims in fitting.items() if name != "b.weight"}
    expected |= {"odd": (8,), "c.weight": (1,)}
    wrong = r"missing \(1\): c.weight; unexpected \(1\): b.weight; wrong shape \(1\): odd is \(7,\)"
    with pytest.raises(ValueError, match=wrong):
        reader.check_against(expected)


def test_the_reader_reports_missing_and_damaged_files(tiny_model, tmp_path):
    source, _ = tiny_model
    with pytest.raises(ValueError, match="not a directory"):
        HFCheckpointReader(tmp_path / "absent")
    with pytest.raises(ValueError, match="neither"):
        HFCheckpointReader(tmp_path)
    (tmp_path / SINGLE_NAME).write_bytes(b"short")
    with pytest.raises(ValueError, match="not a complete safetensors file"):
        HFCheckpointReader(tmp_path)
    (tmp_path / INDEX_NAME).write_text('{"weight_map"')
    with pytest.raises(ValueError, match="not a safetensors index"):
        HFCheckpointReader(tmp_path)
    (tmp_path / INDEX_NAME).write_text((source / INDEX_NAME).read_text())
    with pytest.raises(ValueError, match=r"model-00001-of-\d+.safetensors is missing"):
        HFCheckpointReader(tmp_path)
    save_file({"x": torch.zeros(1)}, tmp_path / SINGLE_NAME)
    (tmp_path / INDEX_NAME).write_text(json.dumps({"weight_map": {"y": SINGLE_NAME}}))
    with pytest.raises(ValueError, match="lacks y, which the index puts there"):
        HFCheckpointReader(tmp_path)


def test_slices_outside_a_tensor_are_refused(tmp_path):
    save_file({"x": torch.zeros(3, 2), "n": torch.zeros(2, dtype=torch.int64)}, tmp_path / SINGLE_NAME)
    reader = HFCheckpointReader(tmp_path)
    for dim, start, length in [(0, 2, 2), (1, 0, 3), (2, 0, 1), (0, -1, 1), (0, 1, -1)]:
        with pytest.raises(ValueError, match="outside of x"):
            reader.read_slice("x", dim, start, length)
    with pytest.raises(ValueError, match="no tensor z"):
        reader.shape_of("z")
    with pytest.raises(ValueError, match=r"n in .* has dtype I64"):
        reader.dtype_of("n")


def peak_rss_kib():
    line = next(
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")
    )
    return int(line.split()[1])


def test_writing_holds_one_tensor_at_a_time(tmp_path):
    """200 MB through the writer and back must not raise the peak by more than a few tensors."""
    names = [f"t{index}" for index in range(50)]
    specs = {name: TensorSpec((1024, 1024), torch.float32) for name in names}
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is in use now
    before = peak_rss_kib()
    with HFCheckpointWriter(tmp_path / "out", specs, max_shard_bytes=10**8) as writer:
        for index, name in enumerate(names):
            writer.write(name, torch.full((1024, 1024), float(index)))
    assert peak_rss_kib() - before < 60_000
    assert HFCheckpointReader(tmp_path / "out").read_slice("t49", 1, 7, 1).unique().tolist() == [49.0]
