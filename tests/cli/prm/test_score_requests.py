"""Requests have the prompt format of training and are refused by field; answers are sums of log-ratios."""

import json
import math
from pathlib import Path

import pytest
from transformers import Qwen2Config

from megatron_prime.cli.prm.score_requests import MAX_RESPONSES, ScoreRequests
from megatron_prime.config.run import PrimeConfig
from tests.support.tiny_models import SIZES
from tests.support.tokenizers import byte_tokenizer

BETA = 0.5


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    Qwen2Config(**SIZES | {"max_position_embeddings": 64}).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def requests(folder) -> ScoreRequests:
    return _requests(folder, loss="ce")


def _requests(folder: Path, loss: str) -> ScoreRequests:
    return ScoreRequests(
        PrimeConfig.model_validate(
            {
                "run_dir": folder,
                "model": {"path": folder},
                "trainer": {"num_steps": 1},
                "prm": {"beta": BETA, "loss": loss},
                "data": {"instruction": "", "chat_template": "never"},
            }
        )
    )


def read(requests: ScoreRequests, **fields):
    return requests.read(json.dumps(fields).encode())


def test_texts_are_tokenized_and_end_as_sampled_responses_do(requests):
    tokenizer = byte_tokenizer()
    request = read(requests, prompt="1+1?", responses=["2", "three"])
    assert list(request.prompt_ids) == tokenizer.encode("1+1?")
    end = tokenizer.eos_token_id
    assert end is not None
    assert [list(each) for each in request.responses] == [
        [*tokenizer.encode(text), end] for text in ("2", "three")
    ]
    cut = read(requests, prompt="1+1?", responses=["2"], is_complete=False)
    assert list(cut.responses[0]) == tokenizer.encode("2")
    ids = read(requests, prompt_ids=[1, 2], responses=[[3, 4]], rewards="token")
    assert (ids.prompt_ids, ids.responses, ids.rewards) == ([1, 2], [[3, 4]], "token")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"responses": ["a"]}, "name one of 'prompt'"),
        ({"prompt": "a", "prompt_ids": [1], "responses": ["a"]}, "name one of 'prompt'"),
        ({"prompt": " ", "responses": ["a"]}, "'prompt' is empty"),
        ({"prompt": "a"}, f"'responses' must be a list of 1 to {MAX_RESPONSES}"),
        ({"prompt": "a", "responses": ["a"] * (MAX_RESPONSES + 1)}, "'responses' must be a list"),
        ({"prompt": "a", "responses": [[]]}, r"'responses\[0\]' has no tokens"),
        (
            {"prompt": "a", "responses": ["b", [1, 300]]},
            r"'responses\[1\]' must hold token ids from 0 to 299",
        ),
        ({"prompt_ids": [True], "responses": ["a"]}, "'prompt_ids' must hold token ids"),
        ({"prompt": "a", "responses": ["b" * 64]}, "tokens are more than the models' 63"),
        ({"prompt": "a", "responses": ["b"], "rewards": "word"}, "'rewards' is 'word'"),
        ({"prompt": "a", "responses": ["b"], "is_complete": 1}, "'is_complete' must be"),
        ({"promt": "a", "responses": ["b"]}, "unknown fields promt"),
    ],
)
def test_a_wrong_request_is_refused_by_field(requests, fields, message):
    with pytest.raises(ValueError, match=message):
        read(requests, **fields)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "the body is no JSON"),
        (b"[]", "must be a JSON object"),
        (b'{"prompt": ' + b"[" * 100_000, "the body is no JSON: maximum recursion depth"),
        (b'{"prompt": "\\ud800", "responses": ["a"]}', "'prompt': the tokenizer fails"),
        (b'{"prompt": "a", "responses": ["\\ud800"]}', r"'responses\[0\]': the tokenizer fails"),
        (b'{"rewards": "' + b"x" * 1000 + b'"}', r"^'rewards' is 'x{99}\.\.\.: it must be"),
    ],
)
def test_what_is_no_object_is_refused(requests, body, message):
    with pytest.raises(ValueError, match=message):
        requests.read(body)


def test_scores_are_sums_of_log_ratios(requests):
    request = read(requests, prompt="a", responses=["One.\nTwo.", "x"], is_complete=False)
    first = [0.1 * place - 0.3 for place in range(len(request.responses[0]))]
    answer = requests.answer(request, [first, [2.0]])
    one, other = answer["responses"]
    assert answer["best"] == 1 and answer["beta"] == BETA
    assert one["score"] == pytest.approx(BETA * sum(first))
    assert one["probability"] == pytest.approx(1 / (1 + math.exp(-one["score"])))
    assert len(one["step_scores"]) == 2 and one["step_scores"][-1] == pytest.approx(one["score"])
    assert (other["score"], other["num_tokens"]) == (1.0, 1)
    tokens = read(requests, prompt="a", responses=[[5, 6]], rewards="token")
    (scored,) = requests.answer(tokens, [[0.2, -0.4]])["responses"]
    assert (scored["token_ids"], scored["token_rewards"]) == ([5, 6], pytest.approx([0.1, -0.2]))
    whole = read(requests, prompt="a", responses=["b"], rewards="sequence")
    assert "step_scores" not in requests.answer(whole, [[0.0, 0.0]])["responses"][0]


def test_values_of_prefixes_are_those_of_the_objective(folder):
    """ipvrm trains the mean log-ratio of each prefix to be its logit (arXiv 2604.13197)."""
    requests = _requests(folder, loss="ipvrm")
    request = read(requests, prompt="a", responses=["One.\nTwo."], is_complete=False)
    ratios = [0.1 * place - 0.3 for place in range(len(request.responses[0]))]
    (scored,) = requests.answer(request, [ratios])["responses"]
    assert scored["score"] == pytest.approx(BETA * sum(ratios) / len(ratios))
    first_step = len("One.\n")
    assert scored["step_scores"][0] == pytest.approx(BETA * sum(ratios[:first_step]) / first_step)
