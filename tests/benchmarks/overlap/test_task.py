"""The measured task has heavy-tailed responses, demonstrations that are often wrong, and the same data for a seed."""

import json
import statistics

from transformers import AutoTokenizer

from benchmarks.overlap import task
from benchmarks.overlap.lengths import quantiles
from megatron_prime.quickstart.arithmetic import evaluate


def test_responses_have_a_heavy_tail_and_often_a_wrong_result():
    rows = task.data(seed=3)
    assert rows == task.data(seed=3) != task.data(seed=4)
    lengths, right = [], []
    for row in rows["sft"]:
        _, value, operator, operand, _ = row["prompt"].split()
        result, *tail = row["response"].split()
        assert set(tail) <= {task.TAIL}
        lengths.append(len(tail) + 2)  # with the result and the end of the sequence
        right.append(int(result) == evaluate(int(value), operator, int(operand)))
    median, extreme = quantiles(lengths, (0.5, 0.99))
    assert extreme > 20 * median and max(lengths) <= task.MAX_RESPONSE_TOKENS
    assert 0.6 < statistics.fmean(right) < 0.8
    assert all(0 <= int(row["answer"]) < 10 for row in rows["train"])


def test_the_model_and_its_tokenizer_fit_the_data(tmp_path):
    task.write(tmp_path, seed=0)
    config = json.loads((tmp_path / "model/config.json").read_text())
    row = json.loads((tmp_path / "sft.jsonl").read_text().splitlines()[0])
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    ids = tokenizer.encode(row["prompt"])
    assert len(ids) == 5 <= task.MAX_PROMPT_TOKENS and tokenizer.decode(ids) == row["prompt"]
    assert config["vocab_size"] == len(task.VOCABULARY) and tokenizer.unk_token_id not in ids
    assert config["max_position_embeddings"] >= task.MAX_PROMPT_TOKENS + task.MAX_RESPONSE_TOKENS + 2
