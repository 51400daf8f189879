"""Runs against a real HTTP server on loopback that executes the command in the response text."""

import functools
import gzip
import json
import logging
import threading
import time
import tracemalloc
from base64 import b64encode
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from megatron_prime.config.tables.reward import HttpRewardConfig
from megatron_prime.rewards import VerificationStatus
from megatron_prime.rewards.http_endpoint import HttpEndpoint
from megatron_prime.sample import Sample
from tests.support import deadlines
from tests.support.samples import samples

OK, TIMEOUT, ERROR = VerificationStatus.OK, VerificationStatus.TIMEOUT, VerificationStatus.ERROR


@functools.cache
def packed(num_mib):
    return gzip.compress(gzip.compress(b'{"reward": 1}' + b" " * (num_mib << 20), 1))


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        with server.lock:
            server.requests.append((request, self.headers.get("Authorization")))
            server.tries[request["answer"]] += 1
            tries = server.tries[request["answer"]]
            server.busy += 1
            server.most_busy = max(server.most_busy, server.busy)
        try:
            command, _, argument = request["response"].partition(" ")
            getattr(self, f"_{command}")(argument, tries)
        finally:
            with server.lock:
                server.busy -= 1

    def _answer(self, status, body):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _reward(self, argument, tries):
        time.sleep(0.02)
        self._answer(200, b'{"reward": %s}' % argument.encode())

    def _status(self, argument, tries):
        self._answer(int(argument), b"why")

    def _fails(self, argument, tries):
        """Fail the given number of times, then return the reward 1."""
        self._answer(*((503, b"busy") if tries <= int(argument) else (200, b'{"reward": 1}')))

    def _drops(self, argument, tries):
        if tries > int(argument):
            self._answer(200, b'{"reward": 0.25}')
        else:
            self.close_connection = True

    def _sleep(self, argument, tries):
        time.sleep(float(argument))
        self._answer(200, b'{"reward": 1}')

    def _raw(self, argument, tries):
        self._answer(200, argument.encode())

    def _echo(self, argument, tries):
        """Repeat the address and the headers of the request, with the given status."""
        self._answer(int(argument), f"no {self.path} for {self.headers.get('Authorization')}".encode())

    def _big(self, argument, tries):
        self._answer(200, b" " * (2 << 20))

    def _packed(self, argument, tries):
        """Send a reply of the given number of MiB in two layers of compression."""
        body = packed(int(argument))
        self.send_response(200)
        self.send_header("Content-Encoding", "gzip, gzip")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _twice(self, argument, tries):
        """Send a reply to the next request of the connection as well."""
        self._answer(200, b'{"reward": 0}')
        self._answer(200, b'{"reward": 1}')

    def _redirect(self, argument, tries):
        self.send_response(302)
        self.send_header("Location", argument or "/elsewhere")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        server.lock, server.requests, server.tries = threading.Lock(), [], Counter()
        server.busy = server.most_busy = 0
        server.url = f"http://127.0.0.1:{server.server_port}/verify"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()


def verify(server, *texts, **fields):
    endpoint = HttpEndpoint(server.url, HttpRewardConfig(**{"timeout_s": 20.0, **fields}))
    return endpoint, endpoint.verify_all(samples([(text, str(place)) for place, text in enumerate(texts)]))


def test_rewards_come_in_order_and_in_parallel(server):
    endpoint, outcomes = verify(server, *(f"reward {n / 50}" for n in range(50)), max_concurrency=5)
    assert [outcome.reward for outcome in outcomes] == [n / 50 for n in range(50)]
    assert 1 < server.most_busy <= 5
    fields = {"source", "ability", "messages", "metadata", "finish_reason", "turns"}
    assert server.requests[0][0].keys() == {"response", "answer", *fields}
    assert endpoint.counts == {"ok": 50, "timeout": 0, "error": 0, "restarts": 0}
    assert endpoint.verify_all([]) == []


def test_threads_share_the_limit_of_requests(server):
    endpoint = HttpEndpoint(server.url, HttpRewardConfig(timeout_s=20.0, max_concurrency=3))
    batches = [samples([(f"reward {n / 20}", f"{n}"), ("reward 0", f"{n}")]) for n in range(20)]
    with ThreadPoolExecutor(10) as threads:
        outcomes = list(threads.map(endpoint.verify_all, batches))
    assert [[outcome.reward for outcome in batch] for batch in outcomes] == [[n / 20, 0.0] for n in range(20)]
    assert server.most_busy == 3
    assert endpoint.counts["ok"] == 40
    endpoint.close()
    with pytest.raises(RuntimeError, match="is closed"):
        endpoint.verify_all(batches[0])


def test_closing_ends_a_batch(server):
    endpoint = HttpEndpoint(server.url, HttpRewardConfig(timeout_s=deadlines.seconds(60)))
    with ThreadPoolExecutor(1) as threads:
        batch = threads.submit(endpoint.verify_all, samples([("sleep 2", "")] * 2))
        deadlines.wait_until(lambda: server.busy, 30)
        endpoint.close()
        with pytest.raises(RuntimeError, match="is closed"):
            batch.result(1)


def test_transient_failures_are_retried(server):
    endpoint, outcomes = verify(server, "fails 2", "drops 1", num_retries=3)
    assert [outcome.reward for outcome in outcomes] == [1.0, 0.25]
    assert endpoint.counts["restarts"] == 3
    assert server.tries == {"0": 3, "1": 2}


def test_the_number_of_retries_is_limited(server):
    _, (busy, limited) = verify(server, "status 503", "status 429", num_retries=1)
    assert (busy.status, limited.status) == (ERROR, ERROR)
    assert "status 503: why" in busy.detail
    assert server.tries == {"0": 2, "1": 2}


@pytest.mark.parametrize(
    "text",
    [
        "status 400", "status 404", "redirect", "redirect foo:bar",
        "raw nonsense", 'raw {"error": "no"}', 'raw {"reward": 1.5}', "big",
        'raw {"reward": true}', 'raw {"reward": "1"}', 'raw {"reward": null}', 'raw {"reward": NaN}', "raw [1]",
        'raw {"reward": -1}', 'raw {"reward": Infinity}', 'raw {"reward": 1e999}', 'raw {"reward": [1]}', "raw 1",
        'raw {"reward": 1.0, "error": "broken"}', 'raw {"error": ["a"], "reward": 0}', 'raw {"reward": 0, "reward": 1}',
        'raw {"reward": 1' + "0" * 5000 + "}", "raw " + "[" * 60_000, "packed 0", "packed 64", "raw ",
    ],
)  # fmt: skip
def test_an_invalid_reply_is_an_error_without_a_retry(server, text):
    _, (outcome,) = verify(server, text)
    assert outcome.status is ERROR
    assert sum(server.tries.values()) == 1


@pytest.mark.parametrize(
    "text", ['{"reward": 1, "error": null}', '{"reward": 1, "error": ""}', '{"reward": 1.0, "why": "x"}']
)
def test_other_keys_do_not_matter(server, text):
    _, (outcome,) = verify(server, f"raw {text}")
    assert (outcome.status, outcome.reward) == (OK, 1.0)


def test_a_compressed_reply_is_not_expanded(server):
    packed(64)  # compressed before memory is measured
    tracemalloc.start()
    _, (outcome,) = verify(server, "packed 64")
    (_, most), _ = tracemalloc.get_traced_memory(), tracemalloc.stop()
    assert "switch compression off" in outcome.detail
    assert most < 16 << 20


def test_surplus_replies_are_not_those_of_the_next_requests(server):
    _, outcomes = verify(server, "twice", "reward 0.5", "twice", "reward 0.25", max_concurrency=1)
    assert [outcome.reward for outcome in outcomes] == [0.0, 0.5, 0.0, 0.25]


def test_an_error_of_the_server_writes_no_lines_of_its_own(server):
    _, (outcome,) = verify(server, 'raw {"error": "a\\nWARNING: \\u001b[2Jfake"}')
    assert outcome.detail.isprintable() and "fake" in outcome.detail


def test_the_deadline_covers_all_attempts(server):
    start = time.monotonic()
    _, outcomes = verify(server, "sleep 30", "status 503", "reward 1", timeout_s=1.0, num_retries=1000)
    assert [outcome.status for outcome in outcomes] == [TIMEOUT, TIMEOUT, OK]
    assert "status 503" in outcomes[1].detail
    assert time.monotonic() - start < deadlines.seconds(15)


def test_an_unreachable_server_is_reported(server):
    url = server.url
    server.server_close()
    endpoint = HttpEndpoint(url, HttpRewardConfig(num_retries=1))
    (outcome,) = endpoint.verify_all(samples([("a", "b")]))
    assert outcome.status is ERROR
    assert "127.0.0.1" in outcome.detail


def test_text_with_lone_surrogates_is_sent(server):
    _, (outcome,) = verify(server, "reward 1 \ud800")
    assert outcome.status is ERROR  # the test server cannot parse the number, so the request arrived
    assert server.requests[0][0]["response"] == "reward 1 \ud800"


def test_a_token_comes_from_the_environment(server, monkeypatch):
    monkeypatch.setenv("REWARD_TOKEN", "s3cret")
    verify(server, "reward 1", token_variable="REWARD_TOKEN")
    assert server.requests[0][1] == "Bearer s3cret"
    monkeypatch.delenv("REWARD_TOKEN")
    with pytest.raises(ValueError, match="REWARD_TOKEN"):
        verify(server, "reward 1", token_variable="REWARD_TOKEN")


@pytest.mark.parametrize("place", ["user", "password", "query", "name without a value", "fragment", "token"])
def test_no_message_has_a_secret_of_the_address(server, monkeypatch, caplog, place):
    secret = "S3cr3t%2B" if place != "token" else "S3cr3t+"
    port = server.server_port
    url = {
        "user": f"http://{secret}@127.0.0.1:{port}/verify",
        "password": f"http://user:{secret}@127.0.0.1:{port}/verify",
        "query": f"http://127.0.0.1:{port}/verify?a=1&token={secret}",
        "name without a value": f"http://127.0.0.1:{port}/verify?{secret}",
        "fragment": f"http://127.0.0.1:{port}/verify#{secret}",
        "token": server.url,
    }[place]
    caplog.set_level("DEBUG")
    logging.getLogger("httpx").propagate = True
    monkeypatch.setenv("REWARD_TOKEN", secret if place == "token" else "another")
    settings = {"timeout_s": 20.0, "num_retries": 1}
    if place in ("query", "token"):
        settings["token_variable"] = "REWARD_TOKEN"
    texts = ["echo 400", "echo 200", "echo 503", "reward 1", "redirect", "raw nonsense", "big"]
    outcomes = HttpEndpoint(url, HttpRewardConfig(**settings)).verify_all(
        samples([(text, "") for text in texts])
    )
    assert [outcome.status for outcome in outcomes] == [ERROR, ERROR, ERROR, OK, ERROR, ERROR, ERROR]
    outcomes += HttpEndpoint(url, HttpRewardConfig(timeout_s=0.2)).verify_all(samples([("sleep 1", "")]))
    server.server_close()
    outcomes += HttpEndpoint(url, HttpRewardConfig(num_retries=0)).verify_all(samples([("reward 1", "")]))
    messages = [outcome.detail for outcome in outcomes]
    messages += [record.getMessage() for record in caplog.records if record.name.startswith("httpx")]
    encoded = b64encode(b"user:S3cr3t+").decode(), b64encode(b"S3cr3t+:").decode()
    assert not [text for text in messages if "S3" in text or any(form in text for form in encoded)]
    assert f"127.0.0.1:{port}/verify" in messages[0]


@pytest.mark.parametrize("token", ["two words", "S3cr3t\x01", "S3cr3té", " "])
def test_a_token_that_no_header_can_hold_is_refused_without_being_shown(server, monkeypatch, token):
    monkeypatch.setenv("REWARD_TOKEN", token)
    with pytest.raises(ValueError, match=r"REWARD_TOKEN.*ASCII characters without spaces") as caught:
        verify(server, "reward 1", token_variable="REWARD_TOKEN")
    assert "S3" not in str(caught.value)


CASES_OF_ABSENCE = {
    # texts -> whether the server is away for each
    "all refused": (["status 503", "status 429", "drops 99"], [True, True, True]),
    "errors of the server are about the request": (["status 500", "status 500"], [False, False]),
    "one response breaks the server": (["reward 1", "drops 99", "status 502"], [False, False, False]),
    "all slow": (["sleep 30", "sleep 30"], [True, True]),
    "one slow": (["reward 1", "sleep 30"], [False, False]),
    "an error, and slow": (["raw {}", "sleep 30"], [False, False]),
}


@pytest.mark.parametrize("case", CASES_OF_ABSENCE)
def test_only_a_server_that_answers_nobody_is_away(case, server):
    texts, is_away = CASES_OF_ABSENCE[case]
    _, outcomes = verify(server, *texts, num_retries=1, timeout_s=1.0)
    assert [outcome.is_away for outcome in outcomes] == is_away


def test_a_server_that_is_restarted_within_a_batch_gives_all_rewards(server):
    """It drops the first requests of a batch while it had answered others, and is back when it is asked again."""
    endpoint, (first,) = verify(server, "reward 1", num_retries=0)
    outcomes = endpoint.verify_all(samples([("drops 1", "a"), ("fails 1", "b"), ("reward 0.5", "c")]))
    assert [outcome.reward for outcome in (first, *outcomes)] == [1, 0.25, 1, 0.5]


def test_a_server_that_had_answered_and_is_gone_is_away(server):
    endpoint, _ = verify(server, "reward 1", num_retries=0)
    server.shutdown()
    server.server_close()
    outcomes = endpoint.verify_all(samples([("reward 1", "a"), ("reward 0", "b")]))
    assert [outcome.is_away for outcome in outcomes] == [True, True]
    assert endpoint.counts["error"] == 2


def test_a_request_has_the_fields_that_the_configuration_names(server):
    messages = [{"role": "user", "content": "é"}]
    sample = Sample("reward 1", "0", messages=messages, response_ids=(1, 2), turns=[("a", "b")])
    for fields in ((), ("messages", "response_ids", "turns")):
        HttpEndpoint(server.url, HttpRewardConfig(fields=fields)).verify_all([sample])
    texts = {"response": "reward 1", "answer": "0"}
    further = {"messages": messages, "response_ids": [1, 2], "turns": [["a", "b"]]}
    assert [request for request, _ in server.requests] == [texts, texts | further]
