import json
import re
from pathlib import Path

import pyarrow.parquet
import pytest

from megatron_prime.config.tables.data import DataConfig
from megatron_prime.data.prompts import PromptDataset
from megatron_prime.data.sft import SFTDataset
from tests.support.tokenizers import CHAT_TEMPLATE, byte_tokenizer
from tools import convert_data

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "examples" / "data"


def convert(*arguments):
    return convert_data.main([str(argument) for argument in arguments])


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize(
    ("layout", "file"),
    [
        ("gsm8k", "gsm8k.jsonl"),
        ("math", "amc.csv"),
        ("olympiadbench", "olympiadbench.jsonl"),
        ("leetcode", "leetcode.jsonl"),
        ("livecodebench", "livecodebench.jsonl"),
        ("eurus", "eurus.jsonl"),
    ],
)
def test_converted_files_train_as_the_originals(tmp_path, layout, file, suffix):
    output = tmp_path / f"out{suffix}"
    assert convert(SAMPLES / file, "--layout", layout, "--output", output) == 0
    tokenizer = byte_tokenizer(CHAT_TEMPLATE)
    original = PromptDataset.read([SAMPLES / file], DataConfig(layout=layout), tokenizer, 10_000)
    converted = PromptDataset.read([output], DataConfig(layout="eurus"), tokenizer, 10_000)
    assert list(converted.prompts) == list(original.prompts)


def test_the_schema_is_that_of_eurus(tmp_path):
    output = tmp_path / "out.parquet"
    assert convert(SAMPLES / "gsm8k.jsonl", "--layout", "gsm8k", "--output", output, "--split", "test") == 0
    assert pyarrow.parquet.read_schema(output).names == [
        "data_source",
        "prompt",
        "ability",
        "reward_model",
        "extra_info",
    ]
    record = pyarrow.parquet.read_table(output).to_pylist()[1]
    assert record["reward_model"] == {"style": "rule", "ground_truth": "1200"}
    assert record["extra_info"] == {"split": "test", "index": 1}


def test_columns_by_name_and_prompt_text(tmp_path, capsys):
    source, output = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    rows = [{"q": "1+1?", "a": {"v": 2}}, {"q": "1+1?", "a": {"v": 2}}, {"q": "x"}]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["--prompt-field", "q", "--answer-field", "a.v", "--ability", "math", "--output", output]
    assert convert(source, *options) == 1
    assert "rows.jsonl, row 3" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [source], "no partial file is left"
    more = ["--on-bad-row", "skip", "--dedup", "exact", "--system-prompt", "s", "--instruction", "Box it."]
    assert convert(source, *options, *more) == 0
    printed = capsys.readouterr().out
    assert "1 duplicates" in printed and "1 invalid rows" in printed and "1 rows written" in printed
    (record,) = [json.loads(line) for line in output.read_text().splitlines()]
    assert record["data_source"] == "rows"
    assert record["prompt"] == [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "1+1?\n\nBox it."},
    ]


def test_demonstrations(tmp_path):
    output = tmp_path / "sft.parquet"
    options = ["--layout", "math", "--sft", "--response-field", "solution", "--output", output]
    assert convert(SAMPLES / "math.jsonl", *options) == 0
    tokenizer = byte_tokenizer(CHAT_TEMPLATE)
    dataset = SFTDataset.read([output], DataConfig(), "response", tokenizer, 10_000)
    assert len(dataset) == 3
    assert tokenizer.decode(list(dataset.examples[0].response_ids), skip_special_tokens=True).endswith(
        r"\boxed{15}$."
    )


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "x \ud835", "answer": "4"}, "row 1: the prompt has half of a character"),
        ({"prompt": "x\0", "answer": "4"}, "row 1: the prompt has a NUL"),
        ({"prompt": [{"role": "human", "content": "x"}], "answer": "4"}, "it should be 'user'"),
        ({"question": "x", "answer": "2 + 2\n#### 4"}, "no field 'prompt'.*; --layout gsm8k fits this row"),
        ({"prompt": "x", "answer": None}, "'answer' is null.*; --on-bad-row 'skip' drops such rows"),
    ],
)
def test_rows_that_cannot_be_used_are_named(tmp_path, capsys, row, reason):
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    assert convert(tmp_path / "a.jsonl", "--ability", "math", "--output", tmp_path / "b.jsonl") == 1
    assert re.search(reason, capsys.readouterr().err)


def test_invalid_options_are_refused(tmp_path, capsys):
    (tmp_path / "there.jsonl").touch()
    for output, reason in (("there.jsonl", "exists already"), ("a.txt", "use .parquet or .jsonl")):
        with pytest.raises(SystemExit):
            convert(SAMPLES / "math.jsonl", "--output", tmp_path / output)
        assert reason in capsys.readouterr().err
    assert (
        convert(
            SAMPLES / "math.jsonl",
            "--prompt-field",
            "problem",
            "--answer-field",
            "type",
            "--output",
            tmp_path / "b.jsonl",
        )
        == 1
    )
    assert "pass --ability" in capsys.readouterr().err
