import json

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from megatron_prime.data.tokenizer import end_of_sequence, load_tokenizer, stop_token_ids
from tests.support.tokenizers import byte_tokenizer, word_tokenizer


def test_a_saved_tokenizer_is_loaded_offline(tmp_path):
    word_tokenizer(["a", "b"]).save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.encode("b a b") == [1, 0, 1]
    assert end_of_sequence(loaded) == 2


def test_a_tokenizer_that_cannot_be_loaded_is_explained(tmp_path):
    with pytest.raises(ValueError, match="is not a directory"):
        load_tokenizer(tmp_path / "none")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match=r"no tokenizer can be loaded.*notes\.txt"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_without_end_of_sequence_is_rejected(tmp_path):
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}))).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no end-of-sequence token"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (None, (256,)),
        ({}, (256,)),
        ({"eos_token_id": 7}, (7, 256)),
        ({"eos_token_id": [256, 9, 3]}, (3, 9, 256)),
    ],
)
def test_stop_tokens_come_from_tokenizer_and_generation_config(tmp_path, config, expected):
    if config is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(config))
    assert stop_token_ids(byte_tokenizer(), tmp_path) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "not JSON"),
        ('{"eos_token_id": "x"}', "must be an integer"),
        ('{"eos_token_id": [true]}', "must be an integer"),
    ],
)
def test_the_error_names_an_invalid_generation_config(tmp_path, text, reason):
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(ValueError, match=reason):
        stop_token_ids(byte_tokenizer(), tmp_path)
