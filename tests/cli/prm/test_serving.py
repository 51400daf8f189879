"""serve-prm scores by two real SGLang servers that it starts, bounds its requests, and ends with its servers."""

import json
import signal
import threading
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from megatron_prime.cli.prm import serving
from megatron_prime.cli.prm.serving import ScoreServer
from megatron_prime.rollout.engine import EngineError
from megatron_prime.viewer.server import HOST
from megatron_prime.workers.loop_thread import LoopThread
from tests.cli.prm.test_evaluation import save_model
from tests.support.sglang_live import LiveModel, engine_python
from tests.support.toy_runs import Started

CONFIG = """
run_dir = "run"
[model]
path = "reference"
[platform]
device = "cpu"
[rollout]
max_prompt_tokens = 128
max_response_tokens = 128
[rollout.sglang]
python = "{python}"
[prm]
path = "prm"
beta = 0.3
[trainer]
num_steps = 1
"""


def ask(url: str, path: str, body: Any = None, **headers: str) -> tuple[int, dict[str, Any]]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{url}{path}", data, {"Content-Type": "application/json", **headers})
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


class Model:
    """Gives every token of a response the same log-prob, or fails."""

    def __init__(self, logprob: float) -> None:
        self.logprob = logprob
        self.fault = ""

    async def logprobs(self, prompt_ids, response_ids) -> list[float]:
        if self.fault:
            raise EngineError(self.fault)
        return [self.logprob] * len(response_ids)


class Requests:
    """Reads numbers of tokens."""

    def read(self, body: bytes):
        if b"bad" in body:
            raise ValueError("bad field")
        return SimpleNamespace(prompt_ids=[1], responses=[[0] * count for count in json.loads(body)])

    def answer(self, request, log_ratios):
        return {"scores": [sum(each) for each in log_ratios]}


@pytest.fixture
def served():
    """A server in front of two models of this process."""
    models = {"prm": Model(-1.0), "reference": Model(-1.5)}

    async def faults() -> dict[str, str]:
        return {name: model.fault for name, model in models.items() if model.fault}

    servers: Any = SimpleNamespace(servers=models, faults=faults)
    requests: Any = Requests()
    loop = LoopThread("the score server")
    with ScoreServer(requests, servers, loop) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server, models
        server.shutdown()
        thread.join()
    loop.close()


def test_scores_are_differences_of_both_models(served):
    server, _ = served
    assert server.url.startswith(f"http://{HOST}:")
    assert ask(server.url, "/score", [2, 4]) == (200, {"scores": [1.0, 2.0]})
    assert ask(server.url, "/health") == (200, {"status": "ok"})


def test_a_failed_model_is_reported(served):
    server, models = served
    models["reference"].fault = "it is down"
    assert ask(server.url, "/score", [1]) == (502, {"error": "it is down"})
    status, answer = ask(server.url, "/health")
    assert (status, answer["faults"]) == (503, {"reference": "it is down"})


def test_requests_are_bounded_and_wrong_ones_are_explained(served, monkeypatch):
    server, _ = served
    assert ask(server.url, "/score", "bad") == (400, {"error": "bad field"})
    assert ask(server.url, "/other")[0] == 404
    assert ask(server.url, "/score", [1], **{"Content-Type": "text/plain"})[0] == 415
    assert ask(server.url, "/score", [1], Host="elsewhere.example")[0] == 421
    monkeypatch.setattr(serving, "MAX_BODY_BYTES", 2)
    assert ask(server.url, "/score", [1]) == (413, {"error": "a body may have 2 bytes, not 3"})
    for _ in range(serving.MAX_REQUESTS):
        assert server.places.acquire(timeout=5)
    status, answer = ask(server.url, "/score", [1])
    assert status == 503 and "try again" in answer["error"]


def test_a_port_in_use_is_refused(served):
    server, _ = served
    nothing: Any = None
    with pytest.raises(ValueError, match="name another port, or 0 for any free one"):
        ScoreServer(nothing, nothing, nothing, server.server_port)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[Path, list[Any]]:
    """Return the folder of run.toml, and the models that it names."""
    folder = tmp_path_factory.mktemp("served")
    (folder / "run.toml").write_text(CONFIG.format(python=engine_python()))
    return folder, [save_model(folder / name, seed) for name, seed in (("prm", 1), ("reference", 2))]


@pytest.mark.slow
def test_real_servers_give_the_log_ratios_of_both_models(run):
    folder, models = run
    with Started(folder, "serve-prm", "run.toml") as command:
        command.wait_until(lambda: "serving http://" in command.output(), timeout_s=400)
        url = next(line for line in command.output().splitlines() if line.startswith("serving ")).split()[1]
        assert ask(url, "/health") == (200, {"status": "ok"})
        prompt, responses = (1, 2, 3), [(10, 11, 12), (13,)]
        body = {"prompt_ids": prompt, "responses": responses, "rewards": "token"}
        status, answer = ask(url, "/score", body)
        assert status == 200
        for response, scored in zip(responses, answer["responses"], strict=True):
            of_prm, of_reference = (LiveModel(folder, hf).logprobs(prompt, response) for hf in models)
            expected = 0.3 * (of_prm - of_reference).detach()
            assert scored["token_rewards"] == pytest.approx(expected.tolist(), abs=1e-4)
            assert scored["score"] == pytest.approx(float(expected.sum()), abs=1e-4)
        _is_ended_by_ctrl_c(command)


@pytest.mark.slow
def test_ctrl_c_ends_a_command_that_waits_for_its_servers(run):
    with Started(run[0], "serve-prm", "run.toml") as command:
        # Each server has a guardian.
        command.wait_until(
            lambda: "waiting for the SGLang" in command.output() and len(command.family()) >= 4
        )
        _is_ended_by_ctrl_c(command)


def _is_ended_by_ctrl_c(command: Started) -> None:
    command.process.send_signal(signal.SIGINT)
    assert command.all_gone(), command.output()
    assert command.process.returncode == 0, command.output()
