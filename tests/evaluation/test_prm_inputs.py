"""The inputs of eval-prm are read completely before any model is loaded."""

import json
from pathlib import Path

import pytest

from megatron_prime.config.run import PrimeConfig
from megatron_prime.evaluation.prm_inputs import PRMInputs
from megatron_prime.evaluation.saved_responses import SavedResponse
from megatron_prime.types import Turn
from tests.support.hf_shapes import SIZES
from tests.support.tokenizers import byte_tokenizer

SAMPLES = Path(__file__).parents[2] / "examples" / "data"


@pytest.fixture
def model(tmp_path):
    byte_tokenizer().save_pretrained(tmp_path / "model")
    config_json = SIZES | {"model_type": "qwen3", "vocab_size": 300}
    (tmp_path / "model/config.json").write_text(json.dumps(config_json))
    return tmp_path / "model"


def config_of(model, **settings):
    return PrimeConfig.model_validate(
        {
            "run_dir": model.parent / "run",
            "model": {"path": model},
            "rollout": {"max_prompt_tokens": 64, "max_response_tokens": 64},
            "trainer": {"num_steps": 1, "max_tokens_per_microbatch": 128},
            "prm_evaluation": settings,
        }
    )


def test_every_input_is_read_and_counted(tmp_path, model):
    line = {"prompt_ids": [1], "responses": [{"text": "x", "token_ids": [1], "outcome": 1}]}
    (tmp_path / "toy.jsonl").write_text(json.dumps(line) + "\n")
    inputs = PRMInputs(
        config_of(
            model,
            responses=[tmp_path / "toy.jsonl"],
            processbench={"gsm8k": SAMPLES / "processbench.jsonl"},
            pairs=[SAMPLES / "pairs.jsonl"],
        )
    )
    assert inputs.summary() == [
        "responses toy: 1 problems",
        "ProcessBench gsm8k: 2 solutions",
        "pairs pairs: 2",
    ]
    assert [
        len(rows) for rows in (inputs.problems["toy"], inputs.solutions["gsm8k"], inputs.pairs["pairs"])
    ] == [
        1,
        2,
        2,
    ]


def test_an_empty_file_is_refused(tmp_path, model):
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(ValueError, match="prm_evaluation: empty has no rows"):
        PRMInputs(config_of(model, responses=[tmp_path / "empty.jsonl"]))


def test_tokens_of_another_model_are_refused(tmp_path, model):
    line = {"prompt_ids": [1], "responses": [{"text": "x", "token_ids": [1, 300], "outcome": 1}]}
    (tmp_path / "toy.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(
        ValueError, match=r"toy\.jsonl, row 1: token 300 is outside of the model's vocabulary"
    ):
        PRMInputs(config_of(model, responses=[tmp_path / "toy.jsonl"]))


def test_a_response_is_split_into_steps_whose_texts_join_to_it(model):
    inputs = PRMInputs(config_of(model, pairs=[SAMPLES / "pairs.jsonl"]))
    response = "Add. Then\n\\boxed{2}"
    text = inputs.split_steps("a, row 1", [1, 2], byte_tokenizer().encode(response))
    assert (text.where, text.num_steps, len(text.token_steps)) == ("a, row 1", 3, len(response))
    assert inputs.step_texts(text) == ["Add. ", "Then\n", "\\boxed{2}"]
    assert inputs.split_steps("a, row 2", [1], []).num_steps == 0


def test_steps_of_a_response_of_several_turns_are_those_of_training(model):
    """The reply "no" belongs to the step before it, has a score unless configured otherwise, and holds no answer."""
    tokenizer = byte_tokenizer()
    parts = ["One. Two.", "no", "Three."]
    ids = tuple(tokenizer.encode("".join(parts)))
    turns = (Turn(9, 11), Turn(17, 17))
    expected = {"all": [(0, 17)], "policy": [(0, 9), (11, 17)], "environment": [(9, 11), (17, 17)]}
    for scored_tokens, spans in expected.items():
        config = config_of(model, pairs=[SAMPLES / "pairs.jsonl"])
        prm = config.prm.model_copy(update={"scored_tokens": scored_tokens})
        inputs = PRMInputs(config.model_copy(update={"prm": prm}))
        text = inputs.split_steps("a, row 1", [1], ids, turns)
        assert inputs.step_texts(text) == ["One. ", "Two.no", "Three."]
        assert text.scored_spans == spans
    assert inputs.answer_text(SavedResponse("".join(parts), ids, 1.0, turns)) == "Three."
    assert inputs.answer_text(SavedResponse("One turn", ids, 1.0)) == "One turn"
