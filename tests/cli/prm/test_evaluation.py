"""The metrics of eval-prm on two random models equal those computed from HF logits in float64."""

import json
from pathlib import Path

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from tests.support.tiny_models import SIZES
from tests.support.tokenizers import byte_tokenizer
from tests.support.toy_runs import finish

SAMPLES = Path(__file__).parents[3] / "examples" / "data"
BETA = 0.3
CONFIG = """
run_dir = "run"
[model]
path = "reference"
[platform]
device = "cpu"
[rollout]
max_prompt_tokens = 256
max_response_tokens = 256
[prm]
path = "prm"
beta = 0.3
[trainer]
num_steps = 1
max_tokens_per_microbatch = 512
[prm_evaluation]
responses = ["responses/toy.jsonl"]
processbench = { gsm8k = "processbench.jsonl" }
pairs = ["pairs.jsonl"]
"""
RESPONSES = [
    ("1 + 1?", [("Add. Then\n\\boxed{2}", 1.0), ("So\n\\boxed{3}", 0.0), ("\\boxed{ 2 }", 1.0)]),
    ("2 * 3?", [("It is 5.", 0.0), ("Six.\n\\boxed{6}", 1.0), ("\\boxed{5}", None)]),
]


def save_model(folder: Path, seed: int) -> Qwen2ForCausalLM:
    torch.manual_seed(seed)
    model = Qwen2ForCausalLM(
        Qwen2Config(**SIZES | {"max_position_embeddings": 512}, tie_word_embeddings=False)
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return model.double().eval()


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """Return (folder of a finished eval-prm run, HF model of the PRM, HF model of the reference, printed output)."""
    folder = tmp_path_factory.mktemp("prm")
    prm, reference = save_model(folder / "prm", 1), save_model(folder / "reference", 2)
    (folder / "responses").mkdir()
    encode = byte_tokenizer().encode
    lines = [
        {
            "prompt_ids": encode(prompt),
            "responses": [
                {"text": text, "token_ids": encode(text), "outcome": outcome} for text, outcome in responses
            ],
        }
        for prompt, responses in RESPONSES
    ]
    (folder / "responses" / "toy.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name in ("processbench.jsonl", "pairs.jsonl"):
        (folder / name).write_text((SAMPLES / name).read_text())
    (folder / "run.toml").write_text(CONFIG)
    ended = finish(folder, "eval-prm", "run.toml")
    assert ended.returncode == 0, ended.stderr[-3000:]
    return folder, prm, reference, ended.stdout


def score_at(models, prompt: str, text: str, num_characters: int) -> float:
    """Return BETA * sum of the log-ratios of a response's first characters, where each byte is one token."""
    prm, reference = models
    ids = byte_tokenizer().encode(prompt + text)
    first = len(byte_tokenizer().encode(prompt))
    totals = []
    for model in (prm, reference):
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0]
        total = 0.0
        for place in range(first, first + num_characters):
            row = logits[place - 1]
            total += float(row[ids[place]] - torch.logsumexp(row, dim=0))
        totals.append(total)
    return BETA * (totals[0] - totals[1])


def read(folder: Path) -> tuple[dict, list[dict]]:
    lines = (folder / "run" / "step_scores.jsonl").read_text().splitlines()
    return json.loads((folder / "run" / "prm_evaluation.json").read_text())[-1]["metrics"], [
        json.loads(line) for line in lines
    ]


def test_step_scores_equal_those_computed_from_hf_logits(judged):
    folder, *models, _ = judged
    _, records = read(folder)
    by_set: dict[str, list] = {}
    for record in records:
        by_set.setdefault(record["set"], []).append(record["step_scores"])
    ends = {"Add. Then\n\\boxed{2}": [5, 10, 19], "So\n\\boxed{3}": [3, 12], "\\boxed{ 2 }": [11]}
    for (text, places), found in zip(ends.items(), by_set["responses/toy"][:3], strict=True):
        assert found == pytest.approx([score_at(models, "1 + 1?", text, end) for end in places], abs=1e-4)
    assert records[0]["steps"] == ["Add. ", "Then\n", "\\boxed{2}"]
    row = json.loads((folder / "processbench.jsonl").read_text().splitlines()[0])
    text = "\n\n".join(row["steps"])
    places = [len("\n\n".join(row["steps"][: number + 1]) + "\n\n") for number in range(len(row["steps"]))]
    places[-1] = len(text)
    wanted = [score_at(models, row["problem"], text, end) for end in places]
    assert by_set["processbench/gsm8k"][0] == pytest.approx(wanted, abs=1e-4)
    assert max(map(abs, wanted)) > 0.01


def test_reranking_and_pair_metrics_follow_from_the_scores(judged):
    folder, *models, _ = judged
    metrics, _ = read(folder)
    last = [[score_at(models, prompt, text, len(text)) for text, _ in group] for prompt, group in RESPONSES]
    outcomes = [[outcome or 0.0 for _, outcome in group] for _, group in RESPONSES]
    best = [group[scores.index(max(scores))] for group, scores in zip(outcomes, last, strict=True)]
    assert metrics["toy/best_last@3"] == pytest.approx(sum(best) / 2)
    assert metrics["toy/avg@3"] == pytest.approx((2 / 3 + 1 / 3) / 2)
    # The majority of the first problem is "2"; in the second all answers differ, so the first response wins.
    assert metrics["toy/majority@3"] == 0.5
    right = [last[0][0] > last[0][1], last[0][2] > last[0][1], last[1][1] > last[1][0]]
    assert metrics["toy/pair_accuracy"] == pytest.approx(sum(right) / 3)
    pairs = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    right = [
        score_at(models, pair["prompt"], pair["chosen"], len(pair["chosen"]))
        > score_at(models, pair["prompt"], pair["rejected"], len(pair["rejected"]))
        for pair in pairs
    ]
    assert metrics["pairs/pair_accuracy"] == pytest.approx(sum(right) / 2)
    assert 0 <= metrics["processbench/f1"] <= 1


def test_the_command_prints_a_table_and_the_path_of_its_output(judged):
    folder, _, _, output = judged
    for words in (
        "toy/weighted_vote@3",
        "processbench/gsm8k/f1",
        "pairs/pair_accuracy",
        "prm_evaluation.json",
    ):
        assert words in output
    assert list((folder / "run" / "prm_tensorboard").iterdir())


def test_equal_models_and_missing_files_are_refused_before_loading(judged):
    folder, *_ = judged
    ended = finish(folder, "eval-prm", "run.toml", "prm.path=reference", 'prm_evaluation.pairs=["no.jsonl"]')
    assert ended.returncode == 2
    assert "prm_evaluation.pairs: no.jsonl does not exist" in ended.stderr
    assert "every score would be 0" in ended.stderr
