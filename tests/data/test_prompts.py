import json

import pyarrow
import pyarrow.parquet
import pytest

from megatron_prime.config.tables.data import DataConfig
from megatron_prime.data.prompts import PromptDataset
from tests.data.conversations.chat_templates import QWEN2_5
from tests.support.tokenizers import CHAT_TEMPLATE, byte_tokenizer


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path, tokenizer=None, max_prompt_tokens=100, keeps_rows=False, **config):
    paths = path if isinstance(path, list) else [path]
    return PromptDataset.read(
        paths,
        DataConfig(**config),
        tokenizer or byte_tokenizer(),
        max_prompt_tokens,
        keeps_rows=keeps_rows,
    )


def text_of(prompt):
    return byte_tokenizer().decode(list(prompt.token_ids))


MESSAGES = [{"role": "system", "content": "Think."}, {"role": "user", "content": "2+2?"}]
RENDERED = "<|system|>Think.<|user|>2+2?<|assistant|>"


def test_text_prompts_are_tokenized_verbatim(tmp_path):
    dataset = read(
        write(tmp_path / "a.jsonl", [{"prompt": "2 + 2 =", "answer": 4}, {"prompt": "é", "answer": "x"}])
    )
    assert [text_of(prompt) for prompt in dataset.prompts] == ["2 + 2 =", "é"]
    assert [(prompt.index, prompt.answer, prompt.source) for prompt in dataset.prompts] == [
        (0, "4", ""),
        (1, "x", ""),
    ]
    assert len(dataset) == 2


def test_the_format_of_the_released_data_set_is_read_from_parquet(tmp_path):
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
    assert {ability for _, ability in dataset.prompts.kinds} == {"math", "code"}
    assert [prompt.answer for prompt in dataset.prompts] == ["4", '{"a": [1]}']
    assert [prompt.source for prompt in dataset.prompts] == ["numina", "code"]
    assert text_of(dataset.prompts[0]) == RENDERED


def test_a_dotted_field_descends_into_json_text(tmp_path):
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
def test_the_chat_template_is_applied_by_mode_and_prompt(tmp_path, prompt, mode, expected):
    path = write(tmp_path / "a.jsonl", [{"prompt": prompt, "answer": "4"}])
    assert text_of(read(path, byte_tokenizer(CHAT_TEMPLATE), chat_template=mode).prompts[0]) == expected


def test_long_prompts_are_dropped_and_counted_without_changing_the_index(tmp_path):
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
def test_the_error_names_an_invalid_row(tmp_path, row, reason):
    path = write(tmp_path / "a.jsonl", [{"prompt": "fine", "answer": "1"}, row])
    with pytest.raises(ValueError, match=rf"a\.jsonl, row 2: .*{reason}"):
        read(path)


def test_an_empty_data_set_is_explained(tmp_path):
    with pytest.raises(ValueError, match="no rows"):
        read(write(tmp_path / "a.jsonl", []))
    with pytest.raises(ValueError, match="of its 1 rows none is left: 1 longer than 2 tokens"):
        read(write(tmp_path / "b.jsonl", [{"prompt": "long", "answer": "1"}]), max_prompt_tokens=2)
    with pytest.raises(ValueError, match=r"data\.train"):
        read([])


def dataset_of(tmp_path, answers):
    return read(
        write(tmp_path / "a.jsonl", [{"prompt": f"q{n}", "answer": a} for n, a in enumerate(answers)])
    )


def test_the_stream_resumes_in_mid_epoch_across_processes(tmp_path):
    answers = [str(n) for n in range(10)]
    whole = dataset_of(tmp_path, answers).stream(seed=5)
    whole.next(13)
    state = json.loads(json.dumps(whole.state_dict()))
    resumed = dataset_of(tmp_path, answers).stream(seed=5)
    resumed.load_state_dict(state)
    assert resumed.next(12) == whole.next(12)
    assert resumed.epoch == whole.epoch == 2


def test_one_changed_answer_changes_the_fingerprint(tmp_path):
    state = dataset_of(tmp_path, ["1", "2"]).stream(seed=0).state_dict()
    with pytest.raises(ValueError, match="another data set"):
        dataset_of(tmp_path, ["1", "3"]).stream(seed=0).load_state_dict(state)


def test_changed_metadata_are_noticed_where_they_are_read(tmp_path):
    rows = [{"prompt": "q", "answer": "1", "level": level} for level in (1, 2)]
    old, new = (write(tmp_path / f"{row['level']}.jsonl", [row]) for row in rows)
    state = read(old, keeps_rows=True).stream(seed=0).state_dict()
    with pytest.raises(ValueError, match="another data set"):
        read(new, keeps_rows=True).stream(seed=0).load_state_dict(state)
    # Neither a run that reads no metadata, nor the change to one, depends on them.
    read(new).stream(seed=0).load_state_dict(state)
    read(new, keeps_rows=True).stream(seed=0).load_state_dict(read(old).stream(seed=0).state_dict())


def test_bad_rows_are_dropped_counted_and_reported(tmp_path):
    rows = [{"prompt": "q0", "answer": "0"}, {"prompt": "q1"}, {"prompt": "q2", "answer": "2"}]
    path = write(tmp_path / "a.jsonl", rows)
    path.write_text(path.read_text() + "{no json\n" + json.dumps({"prompt": "q4", "answer": "4"}) + "\n")
    with pytest.raises(ValueError, match=r"row 2: no field 'answer'.*data.on_bad_row = 'skip'"):
        read(path)
    dataset = read(path, on_bad_row="skip")
    assert [(prompt.index, prompt.answer) for prompt in dataset.prompts] == [(0, "0"), (2, "2"), (4, "4")]
    assert dataset.num_bad_rows == 2
    assert "2 invalid rows" in dataset.notes[0]
    assert "row 2: no field" in dataset.notes[1] and "row 4: not a JSON object" in dataset.notes[2]
    with pytest.raises(ValueError, match=r"none is left: 1 invalid, such as .*row 1"):
        read(write(tmp_path / "b.jsonl", [{"prompt": "q"}]), on_bad_row="skip")


def test_duplicates_are_dropped_across_files(tmp_path):
    first = write(tmp_path / "a.jsonl", [{"prompt": "What is  1+1?", "answer": "2"}])
    second = write(
        tmp_path / "b.jsonl",
        [
            {"prompt": "what is 1+1?", "answer": "3"},
            {"prompt": "What is  1+1?", "answer": "2"},
            {"prompt": [{"role": "user", "content": "new"}], "answer": "1"},
        ],
    )
    counts = {}
    for mode in ("none", "exact", "normalized"):
        dataset = read([first, second], byte_tokenizer(CHAT_TEMPLATE), dedup=mode)
        counts[mode] = ([prompt.index for prompt in dataset.prompts], dataset.num_duplicates)
    assert counts == {
        "none": ([0, 1, 2, 3], 0),
        "exact": ([0, 1, 3], 1),
        "normalized": ([0, 3], 2),
    }


def test_weights_by_source_and_file_and_exact_resume_in_mid_epoch(tmp_path):
    rows = [{"prompt": f"m{n}", "answer": str(n), "from": "maths"} for n in range(6)]
    paths = [
        write(tmp_path / "a.jsonl", rows),
        write(tmp_path / "b.jsonl", [{"prompt": f"o{n}", "answer": str(n), "from": "x"} for n in range(4)]),
    ]
    weights = {"maths": 3.0, "b.jsonl": 1.0}

    def stream():
        dataset = read(paths, source_field="from", weights=weights)
        return dataset.stream(seed=3, weights=weights)

    whole = stream()
    taken = [text_of(prompt) for prompt in whole.next(17)]
    assert sum(text.startswith("m") for text in taken[:16]) == 12
    assert len(set(taken[:8])) == 8, "no prompt twice before its own source is through"
    state = json.loads(json.dumps(whole.state_dict()))
    resumed = stream()
    resumed.load_state_dict(state)
    assert resumed.next(23) == whole.next(23)
    with pytest.raises(ValueError, match=r"other data.weights"):
        even = {"maths": 1, "b.jsonl": 1}
        read(paths, source_field="from", weights=even).stream(3, weights=even).load_state_dict(state)
    with pytest.raises(ValueError, match=r"b\.jsonl, row 1: data\.weights has neither the source 'x'"):
        read(paths, source_field="from", weights={"maths": 1}, on_bad_row="skip")
    with pytest.raises(ValueError, match="names ghost, but no row"):
        read(paths[0]).stream(0, weights={"": 1, "ghost": 1})


def test_the_table_is_a_compact_sequence(tmp_path):
    rows = [{"prompt": "x" * 100, "answer": "\U0001d435" if n == 1 else "1"} for n in range(200)]
    prompts = read(write(tmp_path / "a.jsonl", rows)).prompts
    assert len(prompts) == 200
    assert prompts[-1] == prompts[199]
    assert prompts[1].answer == "\U0001d435"
    assert prompts[3:9:2] == [prompts[3], prompts[5], prompts[7]]
    with pytest.raises(IndexError):
        prompts[200]
    assert prompts.__sizeof__() / 200 < 4 * 100 + 64


def test_the_identity_of_a_data_set_is_its_rows_and_settings_and_not_the_rendered_text(tmp_path):
    rows = [
        {"prompt": MESSAGES, "answer": "4"},
        {"prompt": [{"role": "user", "content": "q"}], "answer": "1"},
    ]
    path = write(tmp_path / "a.jsonl", rows)
    template = write(tmp_path / "t.jinja", [])
    template.write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    chat = byte_tokenizer(CHAT_TEMPLATE)
    one = read(path, chat).fingerprint
    # Another rendering of the same rows, as by another version of the template engine, and another file format.
    assert read(path, byte_tokenizer(CHAT_TEMPLATE.replace("|>", "| >"))).fingerprint == one
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet", chat).fingerprint == one
    others = [
        read(path, chat, system_prompt="s"),
        read(path, chat, instruction="i"),
        read(path, chat, chat_template="never"),
        read(path, chat, chat_template_file=template),
        read(path, chat, date="2026-01-31"),
        read(write(tmp_path / "b.jsonl", rows[::-1]), chat),
        read(write(tmp_path / "c.jsonl", rows[:1]), chat),
        read(path, chat, max_prompt_tokens=30),
    ]
    prints = [dataset.fingerprint for dataset in others]
    template.write_text("{% for m in messages %}{{ m['content'] }}.{% endfor %}")
    prints.append(read(path, chat, chat_template_file=template).fingerprint)
    assert len({one, *prints}) == 1 + len(prints)


def test_prompts_keep_messages_and_metadata_only_on_request(tmp_path):
    path = write(
        tmp_path / "a.jsonl",
        [
            {"prompt": MESSAGES, "answer": 4, "level": 5, "subject": "é", "source": "s"},
            {"prompt": "2+2?", "answer": 4, "level": None, "huge": "x" * 100_000},
        ],
    )
    settings = {"instruction": "Box it.", "system_prompt": "Be brief.", "source_field": None}
    kept = read(path, byte_tokenizer(CHAT_TEMPLATE), keeps_rows=True, **settings)
    first, second = kept.prompts
    assert json.loads(first.messages) == [MESSAGES[0], {"role": "user", "content": "2+2?\n\nBox it."}]
    assert json.loads(second.messages) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "2+2?\n\nBox it."},
    ]
    assert json.loads(first.metadata) == {"level": 5, "subject": "é", "source": "s"}
    assert json.loads(second.metadata) == {"level": None}
    assert any("the column 'huge' is left out of 1 rows" in note for note in kept.notes)
    plain = read(path, byte_tokenizer(CHAT_TEMPLATE), **settings)
    assert [(prompt.messages, prompt.metadata) for prompt in plain.prompts] == [("", ""), ("", "")]
    assert [prompt.token_ids for prompt in plain.prompts] == [prompt.token_ids for prompt in kept.prompts]
    assert kept.fingerprint.startswith(f"{plain.fingerprint}+")
    texts = [text for prompt in kept.prompts for text in (prompt.messages, prompt.metadata)]
    extra = sum(len(text.encode()) for text in texts) + 2 * 8 * 3
    assert kept.prompts.__sizeof__() - plain.prompts.__sizeof__() == extra


def test_schemas_of_the_environment_are_part_of_prompts_lengths_and_identity(tmp_path):
    """What the policy will see counts against max_prompt_tokens, and other tools make another data set."""
    tool = {"type": "function", "function": {"name": "add", "description": "Add.", "parameters": {}}}
    file = write(tmp_path / "a.jsonl", [{"prompt": "1 + 1?", "answer": "2"}])
    tokenizer = byte_tokenizer(QWEN2_5)
    plain, shown = (
        PromptDataset.read([file], DataConfig(), tokenizer, 2000, tools=tools) for tools in (None, (tool,))
    )
    (before,), (after,) = plain.prompts[:], shown.prompts[:]
    assert '"name": "add"' in text_of(after) and "add" not in text_of(before)
    assert plain.fingerprint != shown.fingerprint
    assert (
        PromptDataset.read([file], DataConfig(), tokenizer, len(after.token_ids), tools=[tool]).num_dropped
        == 0
    )
    with pytest.raises(ValueError, match=r"no row|longer"):
        PromptDataset.read([file], DataConfig(), tokenizer, len(after.token_ids) - 1, tools=[tool])
