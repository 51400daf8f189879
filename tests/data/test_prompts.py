import json

import pyarrow
import pyarrow.parquet
import pytest
from data_tokenizers import CHAT_TEMPLATE, byte_tokenizer

from megatron_prime.config.schema import DataConfig
from megatron_prime.data.prompts import PromptDataset, PromptStream


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path, tokenizer=None, max_prompt_tokens=100, **config):
    paths = path if isinstance(path, list) else [path]
    return PromptDataset.read(paths, DataConfig(**config), tokenizer or byte_tokenizer(), max_prompt_tokens)


def text_of(prompt):
    return byte_tokenizer().decode(list(prompt.token_ids))


MESSAGES = [{"role": "system", "content": "Think."}, {"role": "user", "content": "2+2?"}]
RENDERED = "<|system|>Think.<|user|>2+2?<|assistant|>"


def test_text_prompts_are_tokenised_as_they_stand(tmp_path):
    dataset = read(
        write(tmp_path / "a.jsonl", [{"prompt": "2 + 2 =", "answer": 4}, {"prompt": "é", "answer": "x"}])
    )
    assert [text_of(prompt) for prompt in dataset.prompts] == ["2 + 2 =", "é"]
    assert [(prompt.index, prompt.answer, prompt.source) for prompt in dataset.prompts] == [
        (0, "4", ""),
        (1, "x", ""),
    ]
    assert len(dataset) == 2


def test_the_released_data_set_s_form_is_read_from_parquet(tmp_path):
    path = tmp_path / "eurus.parquet"
    rows = [
        {
            "data_source": "numina",
            "ability": "math",
            "prompt": MESSAGES,
            "reward_model": {"style": "rule", "ground_truth": "4"},
        },
        {
            "data_source": "code",
            "ability": "code",
            "prompt": MESSAGES,
            "reward_model": {"style": "rule", "ground_truth": '{"a": [1]}'},
        },
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    dataset = read(
        path,
        byte_tokenizer(CHAT_TEMPLATE),
        answer_field="reward_model.ground_truth",
        source_field="data_source",
        ability_field="ability",
    )
    assert [prompt.ability for prompt in dataset.prompts] == ["math", "code"]
    assert [prompt.answer for prompt in dataset.prompts] == ["4", '{"a": [1]}']
    assert [prompt.source for prompt in dataset.prompts] == ["numina", "code"]
    assert text_of(dataset.prompts[0]) == RENDERED


def test_reward_model_as_json_text_is_descended_into(tmp_path):
    row = {"prompt": "q", "reward_model": json.dumps({"ground_truth": {"inputs": ["1"]}})}
    dataset = read(write(tmp_path / "a.jsonl", [row]), answer_field="reward_model.ground_truth")
    assert json.loads(dataset.prompts[0].answer) == {"inputs": ["1"]}


@pytest.mark.parametrize(
    ("prompt", "mode", "expected"),
    [
        (MESSAGES, "auto", RENDERED),
        (MESSAGES, "always", RENDERED),
        (MESSAGES, "never", "Think.\n2+2?"),
        ("2+2?", "auto", "2+2?"),
        ("2+2?", "always", "<|user|>2+2?<|assistant|>"),
        ("2+2?", "never", "2+2?"),
    ],
)
def test_when_the_chat_template_is_applied(tmp_path, prompt, mode, expected):
    path = write(tmp_path / "a.jsonl", [{"prompt": prompt, "answer": "4"}])
    assert text_of(read(path, byte_tokenizer(CHAT_TEMPLATE), chat_template=mode).prompts[0]) == expected


def test_long_prompts_are_dropped_counted_and_do_not_move_the_index(tmp_path):
    rows = [{"prompt": "x" * length, "answer": "1"} for length in (3, 11, 10, 12)]
    dataset = read(write(tmp_path / "a.jsonl", rows), max_prompt_tokens=10)
    assert [prompt.index for prompt in dataset.prompts] == [0, 2]
    assert dataset.num_dropped == 2


def test_the_index_is_unique_over_files(tmp_path):
    paths = [write(tmp_path / f"{n}.jsonl", [{"prompt": "q", "answer": str(n)}] * 2) for n in range(2)]
    assert [(p.index, p.answer) for p in read(paths).prompts] == [(0, "0"), (1, "0"), (2, "1"), (3, "1")]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"answer": "1"}, "no field 'prompt'"),
        ({"prompt": "q"}, "no field 'answer'"),
        ({"prompt": "  ", "answer": "1"}, "'prompt' is empty"),
        ({"prompt": 3, "answer": "1"}, "'prompt' is a int"),
        ({"prompt": [], "answer": "1"}, "empty list of messages"),
        ({"prompt": [{"content": "q"}], "answer": "1"}, "message 0 of 'prompt'"),
        ({"prompt": [{"role": "user", "content": None}], "answer": "1"}, "message 0 of 'prompt'"),
        ({"prompt": MESSAGES, "answer": "1"}, "no chat template"),
        ({"prompt": "q", "answer": None}, "'answer' is null"),
        ({"prompt": "q", "answer": " "}, "'answer' is empty"),
    ],
)
def test_a_row_that_does_not_fit_is_named(tmp_path, row, reason):
    path = write(tmp_path / "a.jsonl", [{"prompt": "fine", "answer": "1"}, row])
    with pytest.raises(ValueError, match=rf"a\.jsonl, row 2: .*{reason}"):
        read(path)


def test_an_empty_data_set_is_explained(tmp_path):
    with pytest.raises(ValueError, match="no rows"):
        read(write(tmp_path / "a.jsonl", []))
    with pytest.raises(ValueError, match="all its 1 prompts are longer than 2 tokens"):
        read(write(tmp_path / "b.jsonl", [{"prompt": "long", "answer": "1"}]), max_prompt_tokens=2)
    with pytest.raises(ValueError, match=r"data\.train"):
        read([])


def dataset_of(tmp_path, answers):
    return read(
        write(tmp_path / "a.jsonl", [{"prompt": f"q{n}", "answer": a} for n, a in enumerate(answers)])
    )


def test_the_stream_resumes_in_mid_epoch_across_processes(tmp_path):
    answers = [str(n) for n in range(10)]
    whole = PromptStream(dataset_of(tmp_path, answers), seed=5)
    whole.next(13)
    state = json.loads(json.dumps(whole.state_dict()))
    resumed = PromptStream(dataset_of(tmp_path, answers), seed=5)
    resumed.load_state_dict(state)
    assert resumed.next(12) == whole.next(12)
    assert resumed.epoch == whole.epoch == 2


def test_one_changed_answer_is_another_data_set(tmp_path):
    state = PromptStream(dataset_of(tmp_path, ["1", "2"]), seed=0).state_dict()
    with pytest.raises(ValueError, match="another data set"):
        PromptStream(dataset_of(tmp_path, ["1", "3"]), seed=0).load_state_dict(state)
