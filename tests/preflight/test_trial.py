"""What the first prompts of a run would end with is found on a sample of its rows, by the code of the run."""

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from megatron_prime.config import load_config
from megatron_prime.preflight import trial
from megatron_prime.preflight.trial import MAX_PROBLEMS, Trial, try_run
from tests.preflight.workspace import write_model
from tests.support.tokenizers import CHAT_TEMPLATE, byte_tokenizer

ROW = {"prompt": "1 + 1 =", "answer": "2"}


@pytest.fixture
def run(workspace) -> Path:
    """A folder in which the minimal file's run can start, with a tokenizer and eight prompts."""
    write_model(workspace / "model", vocab_size=300)
    byte_tokenizer(CHAT_TEMPLATE).save_pretrained(workspace / "model")
    write_rows(*[ROW] * 8)
    return workspace


def write_rows(*rows: object, name: str = "train.jsonl") -> None:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def trial_of(*overrides: str) -> Trial:
    return try_run(load_config(Path("run.toml"), overrides))


def test_a_run_that_can_start_has_no_fault(run):
    assert trial_of() == Trial()


def _tokenizer_that_is_damaged() -> list[str]:
    text = Path("model/tokenizer.json").read_text()
    Path("model/tokenizer.json").write_text(text[: len(text) // 2])
    return []


def _tokenizer_that_is_empty() -> list[str]:
    Path("model/tokenizer.json").write_text("{}")
    return []


def _tokenizer_without_end() -> list[str]:
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = None
    tokenizer.save_pretrained("model")
    return []


def _tokenizer_of_another_model() -> list[str]:
    write_model(Path("model"), vocab_size=200)
    byte_tokenizer().save_pretrained("model")
    return []


def _end_outside_of_the_vocabulary() -> list[str]:
    write_model(Path("model"), vocab_size=256)
    byte_tokenizer().save_pretrained("model")
    return []


def _stop_tokens_that_are_no_numbers() -> list[str]:
    Path("model/generation_config.json").write_text('{"eos_token_id": "</s>"}')
    return []


def _template_that_fails() -> list[str]:
    Path("chat.jinja").write_text("{{ raise_exception('no system message') }}")
    return ["data.chat_template_file=chat.jinja", "data.chat_template=always"]


def _no_template() -> list[str]:
    byte_tokenizer().save_pretrained("model")
    Path("model/chat_template.jinja").unlink(missing_ok=True)
    return ["data.chat_template=always"]


def _rows(*rows: object, overrides: tuple[str, ...] = ()):
    def write() -> list[str]:
        write_rows(*rows)
        return list(overrides)

    return write


def _benchmark_of_another_layout() -> list[str]:
    write_rows(ROW, name="b.jsonl")
    return ["evaluation.benchmarks.math500.path=b.jsonl"]


def _held_out_rows_without_answer() -> list[str]:
    write_rows({"prompt": "x"}, name="h.jsonl")
    return ["data.evaluation=['h.jsonl']"]


FAULTS = {
    "damaged tokenizer": (_tokenizer_that_is_damaged, "no tokenizer can be loaded from model: "),
    "empty tokenizer": (_tokenizer_that_is_empty, "no tokenizer can be loaded from model: "),
    "no end of sequence": (_tokenizer_without_end, "has no end-of-sequence token"),
    "tokenizer of another model": (_tokenizer_of_another_model, "the tokenizer has token 25"),
    "end outside of the vocabulary": (
        _end_outside_of_the_vocabulary,
        "vocab_size is 256: tokenizer and weights",
    ),
    "stop tokens": (
        _stop_tokens_that_are_no_numbers,
        "generation_config.json: eos_token_id = '</s>' must be",
    ),
    "template that fails": (_template_that_fails, "row 1: the chat template fails on this prompt: no system"),
    "no template": (_no_template, "row 1: the tokenizer has no chat template for this prompt"),
    "no answer": (_rows(ROW, {"prompt": "x"}), "data.train: train.jsonl, row 2: no field 'answer'"),
    "other columns": (_rows({"question": "x", "answer": "1"}), "row 1: no field 'prompt'"),
    "no JSON object": (_rows(ROW, [1, 2]), "row 2: a list where a JSON object should be"),
    "half a character": (
        _rows(ROW, {**ROW, "prompt": "x \ud835"}),
        "row 2: the prompt has half of a character",
    ),
    "all too long": (
        _rows({**ROW, "prompt": "x" * 2000}),
        "data.train: no row can be used: of its 1 rows none is",
    ),
    "all rows bad": (
        _rows({"x": 1}, {"x": 2}, overrides=("data.on_bad_row=skip",)),
        "data.train: no row can be used: of its 2 rows none is left: 2 invalid",
    ),
    "no weight": (_rows(ROW, overrides=("data.weights.other=1.0",)), "data.weights has neither the source"),
    "no route": (_rows(ROW, overrides=("reward.verifier=auto",)), "reward.routes has neither the source"),
    "benchmark": (
        _benchmark_of_another_layout,
        "evaluation.benchmarks.math500: b.jsonl, row 1: none of the columns",
    ),
    "held-out rows": (_held_out_rows_without_answer, "data.evaluation: h.jsonl, row 1: no field 'answer'"),
    "tests that are none": (
        _rows(ROW, overrides=("reward.verifier=code", "reward.code.sandbox=none-i-accept-the-risk")),
        "data.train: train.jsonl, row 1: the verifier 'code' cannot use the answer: the ground truth of code is a int ",
    ),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_run_that_would_end_is_refused(case, run):
    prepare, fault = FAULTS[case]
    trial = trial_of(*prepare())
    assert len([line for line in trial.faults if fault in line]) == len(trial.faults) == 1, trial


@pytest.mark.parametrize(
    ("rows", "overrides", "warning"),
    [
        ([ROW] * 8, ["trainer.num_steps=1000"], "visits each of the 8 prompts of data.train 500 times"),
        ([ROW], [], "trainer.prompts_per_step = 4 exceeds the 1 prompts of data.train"),
        (
            [ROW] * 4 + [{**ROW, "prompt": "x" * 2000}] * 5,
            [],
            "data.train: 5 of 9 rows are left out, 5 of them because they have more than 1024 tokens",
        ),
        (
            [ROW] * 4 + [{"x": 1}] * 5,
            ["data.on_bad_row=skip"],
            "data.train: 5 of 9 rows are left out",
        ),
        (
            [ROW] * 8 + [{**ROW, "answer": "} {"}],
            [],
            "'math' does not accept 1 of 2 answers of the data as right, such as '} {'",
        ),
    ],
)
def test_a_doubt_is_a_warning(rows, overrides, warning, run):
    write_rows(*rows)
    trial = trial_of(*overrides)
    assert not trial.faults
    assert len([line for line in trial.warnings if warning in line]) == 1, trial


def test_a_sample_of_a_large_file_is_read(run):
    write_rows(*[ROW] * MAX_PROBLEMS, *[{**ROW, "prompt": "longer than others"}] * 300)
    assert trial_of("rollout.max_prompt_tokens=10") == Trial()
    write_rows(*[ROW] * 100, {"x": 1}, *[ROW] * MAX_PROBLEMS)
    assert trial_of().faults


DEMONSTRATION = {"prompt": "1 + 1 =", "response": "2"}
BEHIND_THE_SAMPLE = {
    # command -> file, its good row, overrides, and the key in the message
    "data.train": ("train", "train.jsonl", ROW, []),
    "data.evaluation": ("train", "held_out.jsonl", ROW, ["data.evaluation=['held_out.jsonl']"]),
    "evaluation.benchmarks.math500": (
        "train",
        "b.jsonl",
        {"problem": "1 + 1 =", "answer": "2"},
        ["evaluation.benchmarks.math500.path=b.jsonl"],
    ),
    "sft.data": ("sft", "sft.jsonl", DEMONSTRATION, ["sft.data=['sft.jsonl']"]),
    "sft.evaluation": (
        "sft",
        "held_out.jsonl",
        DEMONSTRATION,
        ["sft.data=['first.jsonl']", "sft.evaluation=['held_out.jsonl']"],
    ),
}


@pytest.mark.parametrize("key", BEHIND_THE_SAMPLE)
def test_a_row_behind_the_sample_that_would_end_the_run_is_a_fault(key, run):
    command, name, row, overrides = BEHIND_THE_SAMPLE[key]
    write_rows(DEMONSTRATION, name="first.jsonl")
    write_rows(*[row] * (MAX_PROBLEMS + 2), name=name)
    config = load_config(Path("run.toml"), overrides)
    assert try_run(config, command) == Trial()
    write_rows(*[row] * (MAX_PROBLEMS + 1), {"x": 1}, name=name)
    (fault,) = try_run(config, command).faults
    assert fault.startswith(f"{key}: {name}, row {MAX_PROBLEMS + 2}: ")


def test_a_file_that_takes_too_long_is_checked_in_part(run, monkeypatch):
    monkeypatch.setattr(trial, "SCAN_S", 0.0)
    write_rows(*[ROW] * MAX_PROBLEMS, {"x": 1})
    found = trial_of()
    assert found.faults == []
    assert "data.train: only the first 256 rows were checked" in found.warnings[0]


DEMONSTRATIONS = {
    "too long": ({"prompt": "a" * 50_000, "response": "b"}, "sft.data: no row can be used: .* longer than"),
    "no response": ({"prompt": "a"}, "sft.data: sft.jsonl, row 1: no field 'response'"),
    "of another tokenizer": ({"prompt": "<|user|>", "response": "2"}, None),
}


@pytest.mark.parametrize("case", DEMONSTRATIONS)
def test_demonstrations_are_tried(case, run):
    row, reason = DEMONSTRATIONS[case]
    write_rows(row, name="sft.jsonl")
    found = try_run(load_config(Path("run.toml"), ["sft.data=['sft.jsonl']", "data.train=[]"]), "sft").faults
    if reason is None:
        assert found == []
    else:
        assert re.match(reason, found[0]), found


FUNCTIONS = """
def right(response_text, answer):
    return 1.0

def of_three(response_text, answer, extra):
    return 1.0

def percent(response_text, answer):
    return 100.0

def text(response_text, answer):
    return "good"

def some(response_text, answer):
    return {"2": 1.0}[answer]
"""


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("right", None),
        ("absent", "does not start: AttributeError: module 'user_rewards' has no attribute 'absent' ("),
        (
            "of_three",
            "does not start: reward.verifier = 'user_rewards:of_three': there is nothing for its parameter 'extra'",
        ),
        (
            "percent",
            "gives no reward (error) for 2 of 2 answers, such as '2': reward 100.0 is outside [0, 1]",
        ),
        ("text", "gives no reward (error) for 2 of 2 answers, such as '2': ValueError: "),
    ],
)
def test_a_reward_function_is_tried(name, fault, run, monkeypatch):
    Path("user_rewards.py").write_text(FUNCTIONS)
    monkeypatch.syspath_prepend(str(run))
    monkeypatch.setenv("PYTHONPATH", str(run), prepend=":")
    write_rows(*[ROW] * 8, {**ROW, "answer": "3"})
    trial = trial_of(f"reward.verifier=user_rewards:{name}")
    assert trial == Trial() if fault is None else fault in trial.faults[0], trial


class _Server(BaseHTTPRequestHandler):
    reply = b""
    num_requests = 0

    def do_POST(self):
        type(self).num_requests += 1
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.reply)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server():
    _Server.num_requests = 0
    http = HTTPServer(("127.0.0.1", 0), _Server)
    thread = threading.Thread(target=http.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{http.server_port}/verify"
    http.shutdown()
    thread.join()
    http.server_close()


@pytest.mark.parametrize(
    ("reply", "fault"),
    [(b'{"reward": 1.0}', None), (b'{"score": 1.0}', 'the reward server\'s reply has no "reward" in [0, 1]')],
)
def test_a_reward_server_is_asked_once(reply, fault, run, server):
    _Server.reply = reply
    trial = trial_of(f"reward.verifier={server}")
    assert _Server.num_requests == 1
    assert trial == Trial() if fault is None else fault in trial.faults[0]


def test_a_reward_server_that_does_not_answer_is_a_fault(run):
    (fault,) = trial_of("reward.verifier=http://127.0.0.1:9/verify").faults
    assert (
        "gives no reward (error) for 1 of 1 answers, such as '2': http://127.0.0.1:9/verify failed" in fault
    )
