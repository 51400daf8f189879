import json

import pytest
from data_tokenizers import CHAT_TEMPLATE, byte_tokenizer

from megatron_prime.config.schema import DataConfig
from megatron_prime.data.sft import SFTDataset, SFTStream, response_token_ids

EOS = 256


def read(path, rows, field="response", max_tokens=100):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return SFTDataset.read([path], DataConfig(), field, byte_tokenizer(CHAT_TEMPLATE), max_tokens)


def test_examples_are_prompt_and_response_with_end_of_sequence(tmp_path):
    rows = [
        {"prompt": "1+1=", "response": "2"},
        {"prompt": [{"role": "user", "content": "q"}], "response": "a b"},
    ]
    dataset = read(tmp_path / "a.jsonl", rows)
    decode = byte_tokenizer().decode
    assert [decode(list(example.prompt_ids)) for example in dataset.examples] == [
        "1+1=",
        "<|user|>q<|assistant|>",
    ]
    assert [decode(list(example.response_ids[:-1])) for example in dataset.examples] == ["2", "a b"]
    assert all(example.response_ids[-1] == EOS for example in dataset.examples)


def test_end_of_sequence_is_written_once():
    assert response_token_ids("2<eos>", byte_tokenizer()).count(EOS) == 1


def test_long_examples_are_dropped_whole(tmp_path):
    rows = [{"prompt": "1234", "response": "56"}, {"prompt": "1234", "response": "567"}]
    dataset = read(tmp_path / "a.jsonl", rows, max_tokens=7)
    assert len(dataset) == 1
    assert dataset.num_dropped == 1


def test_what_does_not_fit_is_explained(tmp_path):
    with pytest.raises(ValueError, match="row 1: no field 'reply'"):
        read(tmp_path / "a.jsonl", [{"prompt": "q", "response": "a"}], field="reply")
    with pytest.raises(ValueError, match="row 1: 'response' is 7"):
        read(tmp_path / "a.jsonl", [{"prompt": "q", "response": 7}])
    with pytest.raises(ValueError, match="no rows"):
        read(tmp_path / "a.jsonl", [])
    with pytest.raises(ValueError, match=r"set sft\.data"):
        SFTDataset.read([], DataConfig(), "response", byte_tokenizer(), 10)


def test_the_stream_resumes(tmp_path):
    dataset = read(tmp_path / "a.jsonl", [{"prompt": f"q{n}", "response": "a"} for n in range(5)])
    whole, resumed = SFTStream(dataset, seed=1), SFTStream(dataset, seed=1)
    whole.next(8)
    resumed.load_state_dict(whole.state_dict())
    assert resumed.next(9) == whole.next(9)
    assert whole.epoch == 3
