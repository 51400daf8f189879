"""A PRM's folder says which reference its scores need."""

import json

import pytest

from megatron_prime.hf.config_json import ModelFolderError
from megatron_prime.hf.identity import model_identity
from megatron_prime.hf.prm_record import FILE, PRMRecord
from tests.preflight.workspace import write_model


def record(reference, **changes) -> PRMRecord:
    values = {"loss": "ce", "beta": 0.05, "scored_tokens": "all", **changes}
    return PRMRecord(str(reference), model_identity(reference), **values)


def test_a_record_is_read_back(tmp_path):
    written = record(write_model(tmp_path / "base"), loss="dpo", beta=0.3, scored_tokens="policy")
    written.write(tmp_path)
    assert PRMRecord.read(tmp_path) == written
    assert PRMRecord.read(tmp_path / "base") is None


def test_the_reference_is_known_by_its_weights_wherever_it_stands(tmp_path):
    base = write_model(tmp_path / "base")
    of_base = record(base)
    (base / "tokenizer.json").write_text('{"other": 1}')
    base = base.rename(tmp_path / "moved")
    assert of_base.is_reference(base)
    assert not of_base.is_reference(write_model(tmp_path / "other", num_hidden_layers=3))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "another version"),
        ('{"format": 2}', "another version"),
        ('{"format": 1}', "lacks 'reference'"),
        ("[" * 100_000, "cannot be read"),
    ],
)
def test_a_damaged_record_is_refused(tmp_path, text, message):
    (tmp_path / FILE).write_text(text)
    with pytest.raises(ModelFolderError, match=message):
        PRMRecord.read(tmp_path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("reference", 3),
        ("reference_identity", None),
        ("reference_identity", ["a"]),
        ("loss", {}),
        ("beta", "high"),
        ("beta", True),
        ("beta", float("nan")),
        ("scored_tokens", True),
    ],
)
def test_a_value_of_another_type_is_refused(tmp_path, field, value):
    record(write_model(tmp_path / "base")).write(tmp_path)
    values = json.loads((tmp_path / FILE).read_text())
    (tmp_path / FILE).write_text(json.dumps({**values, field: value}))
    with pytest.raises(ModelFolderError, match=f"is damaged: {field} is"):
        PRMRecord.read(tmp_path)


def test_fields_of_later_versions_are_ignored(tmp_path):
    written = record(write_model(tmp_path / "base"))
    written.write(tmp_path)
    values = json.loads((tmp_path / FILE).read_text())
    (tmp_path / FILE).write_text(json.dumps({**values, "later": 1}))
    assert PRMRecord.read(tmp_path) == written
