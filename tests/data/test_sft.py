import json

import pytest

from megatron_prime.config.tables.data import DataConfig
from megatron_prime.data.sft import SFTDataset
from megatron_prime.data.tokenizer import response_token_ids
from megatron_prime.types import policy_mask
from tests.support.tokenizers import CHAT_TEMPLATE, byte_tokenizer

EOS = 256


def read(path, rows, field="response", max_tokens=100):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return SFTDataset.read([path], DataConfig(), field, byte_tokenizer(CHAT_TEMPLATE), max_tokens)


def test_examples_end_with_end_of_sequence(tmp_path):
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
    assert [ids.count(EOS) for ids in response_token_ids(["2<eos>", "2"], byte_tokenizer())] == [1, 1]


def test_long_examples_are_dropped_and_never_truncated(tmp_path):
    rows = [{"prompt": "1234", "response": "56"}, {"prompt": "1234", "response": "567"}]
    dataset = read(tmp_path / "a.jsonl", rows, max_tokens=7)
    assert len(dataset) == 1
    assert dataset.num_dropped == 1


def test_invalid_demonstrations_are_explained(tmp_path):
    with pytest.raises(ValueError, match="row 1: no field 'reply'"):
        read(tmp_path / "a.jsonl", [{"prompt": "q", "response": "a"}], field="reply")
    with pytest.raises(ValueError, match="row 1: 'response' is 7"):
        read(tmp_path / "a.jsonl", [{"prompt": "q", "response": 7}])
    with pytest.raises(ValueError, match="row 1: 'response' is chat messages as text"):
        read(tmp_path / "a.jsonl", [{"prompt": "q", "response": '[{"role": "assistant", "content": "4"}]'}])
    with pytest.raises(ValueError, match="no rows"):
        read(tmp_path / "a.jsonl", [])
    with pytest.raises(ValueError, match=r"set sft\.data"):
        SFTDataset.read([], DataConfig(), "response", byte_tokenizer(), 10)


def test_the_stream_resumes(tmp_path):
    dataset = read(tmp_path / "a.jsonl", [{"prompt": f"q{n}", "response": "a"} for n in range(5)])
    whole, resumed = dataset.stream(seed=1), dataset.stream(seed=1)
    whole.next(8)
    resumed.load_state_dict(whole.state_dict())
    assert resumed.next(9) == whole.next(9)
    assert whole.epoch == 3


def test_all_turns_of_a_conversation_are_trained_behind_its_first_question(tmp_path):
    turns = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "and 2+2?"},
        {"role": "assistant", "content": "4"},
    ]
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"messages": turns}) + "\n" + json.dumps({"messages": turns[:3]}) + "\n")
    tokenizer = byte_tokenizer(CHAT_TEMPLATE)
    long, short = SFTDataset.read([path], DataConfig(), "response", tokenizer, 200, "messages").examples
    assert tokenizer.decode(list(long.prompt_ids)) == "<|system|>s<|user|>1+1?<|assistant|>"
    assert tokenizer.decode(list(long.response_ids)) == "2<eos><|user|>and 2+2?<|assistant|>4<eos>"
    mask = policy_mask(long.turns, len(long.response_ids))
    trained = [token for token, is_policy in zip(long.response_ids, mask, strict=True) if is_policy]
    assert tokenizer.decode(trained) == "2<eos>4<eos>"
    assert (tokenizer.decode(list(short.response_ids)), short.turns) == ("2<eos>", ())
    path.write_text(json.dumps({"messages": turns[:4]}) + "\n")
    with pytest.raises(ValueError, match=r"row 1: 'messages' must hold .*'assistant', 'user'\]"):
        SFTDataset.read([path], DataConfig(), "response", tokenizer, 200, "messages")


def test_tools_of_the_run_and_of_the_row_stand_in_the_prompt(tmp_path):
    template = "{% for t in tools or [] %}<{{ t.function.name }}>{% endfor %}" + CHAT_TEMPLATE
    tokenizer = byte_tokenizer(template)
    row = {"prompt": [{"role": "user", "content": "q"}], "response": "a", "tools": [{"name": "own"}]}
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(row) + "\n")
    given = [{"type": "function", "function": {"name": "given"}}]

    def prompt(config: DataConfig) -> str:
        (example,) = SFTDataset.read([path], config, "response", tokenizer, 99, tools=given).examples
        return tokenizer.decode(list(example.prompt_ids))

    assert prompt(DataConfig()) == "<given><|user|>q<|assistant|>"
    assert prompt(DataConfig(tools_field="tools")) == "<given><own><|user|>q<|assistant|>"
    tokenizer.chat_template = CHAT_TEMPLATE
    with pytest.raises(ValueError, match="row 1: the chat template leaves out the tools given"):
        prompt(DataConfig())


QWEN_LIKE = (
    "{% for m in messages %}[{{ m['role'] }}]{% if m.reasoning_content is string %}<think>\n{{ m.reasoning_content }}\n"
    "</think>\n\n{% endif %}{{ m['content'] }}<end>\n{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
R1_LIKE = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]<think>\n{% endif %}"
)
CLOSED = R1_LIKE.replace("<think>\n", "<think>\n\n</think>\n\n")
RENAMED = (
    QWEN_LIKE.replace("<think>", "<thinking>")
    .replace("</think>", "</thinking>")
    .replace("reasoning_content", "thinking")
)
CASES = {
    # template, the last message without its role -> everything behind the question, or the reason of a bad row
    "plain": (QWEN_LIKE, {"content": "2"}, "[assistant]2"),
    "thoughts": (
        QWEN_LIKE,
        {"content": "2", "reasoning_content": "1, 1"},
        "[assistant]<think>\n1, 1\n</think>\n\n2",
    ),
    "null thoughts": (QWEN_LIKE, {"content": "2", "reasoning_content": None}, "[assistant]2"),
    "thoughts in the content": (
        QWEN_LIKE,
        {"content": "<think>\n1, 1\n</think>\n\n2"},
        "[assistant]<think>\n1, 1\n</think>\n\n2",
    ),
    "thoughts of another name": (
        RENAMED,
        {"content": "2", "thinking": "1, 1"},
        "[assistant]<thinking>\n1, 1\n</thinking>\n\n2",
    ),
    "thoughts of a name that transformers renames": (
        QWEN_LIKE,
        {"content": "2", "thinking": "1, 1"},
        "[assistant]<think>\n1, 1\n</think>\n\n2",
    ),
    "thoughts that the template lacks": (
        CHAT_TEMPLATE,
        {"content": "2", "reasoning_content": "a"},
        "does not write the",
    ),
    "thoughts without a template": (None, {"content": "2", "reasoning_content": "a"}, "no chat template"),
    "opened by the prompt": (
        R1_LIKE,
        {"content": "1, 1\n</think>\n\n2"},
        "[assistant]<think>\n1, 1\n</think>\n\n2",
    ),
    "opened by both": (
        R1_LIKE,
        {"content": "<think>\n1, 1\n</think>\n\n2"},
        "[assistant]<think>\n1, 1\n</think>\n\n2",
    ),
    "opened by both on one line": (
        R1_LIKE,
        {"content": " <think>1, 1</think>2"},
        "[assistant]<think>\n1, 1</think>2",
    ),
    "opened and never closed": (R1_LIKE, {"content": "2"}, "the prompt opens <think>.* does not close it"),
    "opened after they were closed": (
        CLOSED,
        {"content": "<think>a</think>2"},
        "which the prompt has closed already",
    ),
    "closed by the prompt": (CLOSED, {"content": "2"}, "[assistant]<think>\n\n</think>\n\n2"),
    "the begin of the answer twice": (
        CHAT_TEMPLATE,
        {"content": "<|assistant|>2"},
        "<|assistant|>2",
    ),
    "tool calls that the template lacks": (
        QWEN_LIKE,
        {"content": "2", "tool_calls": [{"function": {"name": "add"}}]},
        "leaves out calls of the tools add",
    ),
    "tool calls without a template": (
        None,
        {"content": "2", "tool_calls": [{"function": {"name": "add"}}]},
        "no chat template",
    ),
    "ends of a sequence": (QWEN_LIKE, {"content": "2<eos>\n<eos> \n"}, "[assistant]2"),
    "text behind an end of a sequence": (
        QWEN_LIKE,
        {"content": "2<eos>3"},
        "continues behind an end-of-sequence",
    ),
    "only an end of a sequence": (QWEN_LIKE, {"content": "<eos>"}, "the response has no tokens"),
}


@pytest.mark.parametrize("case", CASES)
def test_nothing_of_a_conversation_is_lost_or_doubled(case, tmp_path):
    template, message, expected = CASES[case]
    turns = [{"role": "user", "content": "1+1?"}, {"role": "assistant", **message}]
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"messages": turns}) + "\n")
    tokenizer = byte_tokenizer(template)

    def trained_on():
        (example,) = SFTDataset.read([path], DataConfig(), "response", tokenizer, 999, "messages").examples
        assert example.response_ids.count(EOS) == 1 and example.response_ids[-1] == EOS
        return tokenizer.decode([*example.prompt_ids, *example.response_ids[:-1]])

    if "assistant" in expected:
        assert trained_on().rpartition("1+1?")[2].removeprefix("<end>\n") == expected
    else:
        with pytest.raises(ValueError, match=f"a.jsonl, row 1: .*{expected}"):
            trained_on()


def test_the_opening_of_thoughts_is_not_doubled_without_messages_either(tmp_path):
    rows = [{"prompt": "1+1? <think>\n", "response": "<think>\none\n</think>2"}]
    (example,) = read(tmp_path / "a.jsonl", rows).examples
    assert byte_tokenizer().decode(list(example.response_ids[:-1])) == "one\n</think>2"


def test_bad_rows_and_duplicates_are_dropped_and_reported(tmp_path):
    rows = [
        {"prompt": "q", "response": "r"},
        {"prompt": "q", "response": "other"},
        {"prompt": "w", "response": " "},
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = DataConfig(on_bad_row="skip", dedup="exact")
    dataset = SFTDataset.read([path], config, "response", byte_tokenizer(), 20)
    assert len(dataset) == 1
    assert "1 duplicates" in dataset.notes[0] and "1 of them have a different answer" in dataset.notes[0]
    assert "row 3" in dataset.notes[2]


def test_demonstrations_are_mixed_by_file(tmp_path):
    for name, count in (("a", 8), ("b", 2)):
        lines = [json.dumps({"prompt": name, "response": f"{name}{n}"}) + "\n" for n in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    weights = {"a.jsonl": 1, "b.jsonl": 3}
    config, tokenizer = DataConfig(weights=weights), byte_tokenizer()
    paths = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    stream = SFTDataset.read(paths, config, "response", tokenizer, 20).stream(0, weights=weights)
    names = [tokenizer.decode(list(example.prompt_ids)) for example in stream.next(40)]
    assert (names.count("a"), names.count("b")) == (10, 30)
