"""Runs against a real HTTP server on loopback that commits the faults that servers commit."""

import json
import logging
import math
import re
import threading
import tracemalloc

import pytest

from megatron_prime.config.tables.reward import JudgeConfig, RewardConfig
from megatron_prime.rewards import RewardPools, VerificationStatus
from megatron_prime.rewards.judge import verifier as judge_verifier
from megatron_prime.rewards.judge.verifier import Judge
from megatron_prime.sample import Sample
from tests.support.judge_server import JudgeServer

OK, TIMEOUT, ERROR = VerificationStatus.OK, VerificationStatus.TIMEOUT, VerificationStatus.ERROR


@pytest.fixture
def server():
    with JudgeServer() as server:
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        yield server
        server.shutdown()


def judge(server, **changes):
    return Judge(JudgeConfig.model_validate({"url": server.url, "model": "m", "timeout_s": 20.0, **changes}))


def outcomes_of(server, *texts, **changes):
    return judge(server, **changes).verify_all([Sample(text, "42") for text in texts])


REPLIES = {
    # the reply of the judge -> reward; None for an error
    "Score: 7": 0.7,
    "It says Score: 10, which is wrong.\nScore: 2": 0.2,
    "**Score:** 5": 0.5,
    "score = 0": 0.0,
    "Score: 10/10": 1.0,
    "Score: 2.5": 0.25,
    "Score: 11": None,
    "Score: -1": None,
    "Score: eleven": None,
    "I cannot say.": None,
    "": None,
}


def test_the_last_score_on_the_scale_is_the_reward(server):
    outcomes = outcomes_of(server, *(f"say {reply}" for reply in REPLIES))
    rewards = [None if math.isnan(outcome.reward) else round(outcome.reward, 9) for outcome in outcomes]
    assert rewards == list(REPLIES.values())
    assert outcomes[0].detail == "the judge gives 7 of 10: Score: 7"
    assert outcomes[6].detail.startswith(
        "1 of 1 replies of the judge have no score from 0 to 10, such as: Score: 11"
    )
    asked = [server.tries[f"say {reply}".rstrip()] or server.tries[f"say {reply}"] for reply in REPLIES]
    assert asked == [1 if reward is not None else 2 for reward in REPLIES.values()], (
        "no score is asked for once more"
    )


def test_the_request_is_that_of_the_configuration(server):
    outcomes_of(
        server,
        "say Score: 1",
        max_tokens=5,
        temperature=0.5,
        parameters={"top_p": 0.9, "seed": 1},
        model="tiny",
    )
    ((body, token),) = server.requests
    (message,) = body.pop("messages")
    assert body == {"model": "tiny", "temperature": 0.5, "max_tokens": 5, "top_p": 0.9, "seed": 1}
    assert message["role"] == "user" and token == ""


VOTES = {
    # texts of the replies in turn, votes -> reward; None for an error
    "mean": ("Score: 2|Score: 4|Score: 6", 3, 0.4),
    "one is repeated": ("none|Score: 4|Score: 6", 2, 0.5),
    "one is left out": ("none|none|Score: 4|Score: 8", 3, 0.6),
    "half are left out": ("none|none|none|none|Score: 4|Score: 8", 4, 0.6),
    "most are left out": ("none|none|none|none|Score: 4", 3, None),
    "all are left out": ("none", 3, None),
}


@pytest.mark.parametrize("case", VOTES)
def test_the_mean_of_the_votes_counts_unless_most_have_no_score(server, case):
    replies, votes, reward = VOTES[case]
    # One at a time, so that the replies come in the order of the table.
    (outcome,) = outcomes_of(server, f"turns {replies}", votes=votes, temperature=1.0, max_concurrency=1)
    assert outcome.status is (ERROR if reward is None else OK), outcome
    assert reward is None or math.isclose(outcome.reward, reward)


def test_requests_run_at_the_same_time_up_to_the_limit(server):
    outcomes = outcomes_of(
        server, *(f"say Score: {n % 10}" for n in range(12)), votes=3, temperature=1.0, max_concurrency=6
    )
    assert [outcome.reward for outcome in outcomes] == [n % 10 / 10 for n in range(12)]
    assert 1 < server.most_busy <= 6


FAULTS = {
    # command -> status, number of requests, a part of the detail
    "fails 429 2": (OK, 3, ""),
    "fails 500 2": (OK, 3, ""),
    "drops 2": (OK, 3, ""),
    "status 400": (ERROR, 1, "status 400: why"),
    "status 401": (ERROR, 1, "status 401: why"),
    "raw <html>": (ERROR, 1, "no chat completion"),
    'raw {"choices": []}': (ERROR, 1, "no chat completion"),
    'raw {"choices": [{"message": "x"}]}': (ERROR, 1, "no chat completion"),
    'raw {"error": {"message": "overloaded"}}': (ERROR, 1, "overloaded"),
    'raw {"choices": [{"message": {"content": ["Score: 1"]}}]}': (ERROR, 1, "is no text"),
    "raw " + "[" * 100_000: (ERROR, 1, "no chat completion"),
    "raw 1": (ERROR, 1, "no chat completion"),
    "cut Score: 9": (ERROR, 2, "have no score"),
    "null": (ERROR, 2, r"\(nothing\)"),
    "big": (ERROR, 1, "more than 4194304 bytes"),
    "gzip": (ERROR, 1, "switch compression off"),
}  # fmt: skip


def test_faults_cost_one_response_and_no_memory(server):
    tracemalloc.start()
    outcomes = outcomes_of(server, *FAULTS, num_retries=3)
    (_, most), _ = tracemalloc.get_traced_memory(), tracemalloc.stop()
    for outcome, (command, (status, num_requests, detail)) in zip(outcomes, FAULTS.items(), strict=True):
        shown = command[:40]
        assert outcome.status is status, (shown, outcome)
        assert server.tries[command] == num_requests, shown
        assert status is OK or re.search(detail, outcome.detail), (shown, outcome)
        assert outcome.detail.isprintable() and len(outcome.detail) <= 600
    assert most < 200 << 20


UNANSWERED = [("status 503", "status 503: why"), ("drops 99", "RemoteProtocolError")]


@pytest.mark.parametrize(("command", "detail"), UNANSWERED)
def test_a_server_that_never_answers_is_asked_again_and_away(server, command, detail):
    (outcome,) = outcomes_of(server, command, num_retries=2)
    assert (outcome.status, outcome.is_away, server.tries[command]) == (ERROR, True, 3)
    assert "failed 3 times; last: " in outcome.detail and detail in outcome.detail


def test_a_server_that_hangs_or_drips_ends_with_the_deadline(server):
    outcomes = outcomes_of(server, "hang 30", "drip", "say Score: 1", timeout_s=1.0)
    assert [outcome.status for outcome in outcomes] == [TIMEOUT, TIMEOUT, OK]
    assert "no reward from http://127.0.0.1" in outcomes[0].detail


def test_a_deadline_that_no_reply_can_meet_is_a_timeout(server):
    (outcome,) = outcomes_of(server, "say Score: 1", timeout_s=1e-6)
    assert outcome.status is TIMEOUT


def test_a_judge_that_answers_nobody_is_away_although_its_replies_are_kept(server, tmp_path):
    asked = judge(server, num_retries=0, cache_dir=tmp_path)
    assert asked.verify_all([Sample("say Score: 1", "")])[0].reward == 0.1
    server.shutdown()
    server.server_close()
    kept, gone = asked.verify_all([Sample("say Score: 1", ""), Sample("say Score: 2", "")])
    assert (kept.reward, kept.is_away) == (0.1, False)
    assert gone.is_away


def test_replies_are_asked_for_once(server, tmp_path):
    texts = ["say Score: 1", "say Score: 2", "say none"]
    settings = {"cache_dir": tmp_path, "votes": 2, "temperature": 1.0}
    first = outcomes_of(server, *texts, **settings)
    num_requests = len(server.requests)
    assert num_requests == 2 + 2 + 4
    assert outcomes_of(server, *texts, **settings)[:2] == first[:2]
    assert len(server.requests) == num_requests + 4, "a reply without a score is not kept"
    # Whatever the reply depends on is a part of the key; how it is read is not.
    outcomes_of(server, texts[0], **settings, score_pattern=r"Score: (\d)")
    assert len(server.requests) == num_requests + 4
    for changes in (
        {"model": "n"},
        {"rubric": "r"},
        {"parameters": {"top_p": 0.5}},
        {"max_tokens": 9},
        {"temperature": 2.0},
    ):
        before = len(server.requests)
        outcomes_of(server, texts[0], **settings | changes)
        assert len(server.requests) == before + 2, changes
    outcomes_of(server, texts[0], cache_dir=tmp_path, votes=3, temperature=1.0)
    assert len(server.requests) == before + 3, "only the third vote is new"


SLOW_PATTERNS = {
    # pattern -> a reply on which its search would take hours, or a minute
    r"(?:(?:a|aa)+)+(\d)$": "a" * 60 + "!",
    r"(?:.*)score(?:.*):(\d)": "score" * 20_000,
    r"score:(?:\s|\s+)*(\d)": "score:" + " " * 60_000,
}


def test_a_pattern_that_would_search_for_hours_costs_one_response_a_second(server, monkeypatch):
    monkeypatch.setattr(judge_verifier, "MAX_SEARCH_S", 0.05)
    for pattern, text in SLOW_PATTERNS.items():
        raw = json.dumps({"choices": [{"message": {"content": text}, "finish_reason": "stop"}]})
        slow, good = outcomes_of(server, f"raw {raw}", "say score aa:7", score_pattern=pattern)
        assert slow.status is ERROR and "score_pattern needs more than 0.05 s" in slow.detail, pattern
        assert "score_pattern needs" not in good.detail


def test_a_score_is_searched_at_the_end_of_a_long_reply(server):
    texts = [f"Score: 3{' ' * 10_000}", f"Score: 3{' ' * 70_000}"]
    raw = [json.dumps({"choices": [{"message": {"content": text}}]}) for text in texts]
    near, far = outcomes_of(server, *(f"raw {text}" for text in raw))
    assert near.reward == 0.3 and far.status is ERROR


@pytest.mark.parametrize("place", ["token", "user", "query"])
def test_no_message_and_no_kept_reply_has_a_secret(server, monkeypatch, caplog, tmp_path, place):
    secret = "S3cr3t+"
    caplog.set_level("DEBUG")
    logging.getLogger("httpx").propagate = True
    monkeypatch.setenv("JUDGE_KEY", secret if place == "token" else "another")
    url = {
        "token": server.url,
        "user": server.url.replace("//", f"//user:{secret}@"),
        "query": f"{server.url}?key={secret}",
    }[place]
    changes = {"url": url, "num_retries": 1, "cache_dir": tmp_path}
    if place != "user":
        changes["token_variable"] = "JUDGE_KEY"
    commands = ["echo 200", "echo 400", "echo 503", "raw <html>", "say Score: 1"]
    outcomes = outcomes_of(server, *commands, **changes)
    assert [outcome.status for outcome in outcomes] == [OK, ERROR, ERROR, ERROR, OK]
    texts = [outcome.detail for outcome in outcomes]
    texts += [record.getMessage() for record in caplog.records]
    texts += [path.read_text() for path in tmp_path.rglob("*.json")]
    assert len([*tmp_path.rglob("*.json")]) == 2
    assert not [text for text in texts if "S3cr" in text]
    if place == "token":
        assert server.requests[0][1] == f"Bearer {secret}"


def test_a_template_that_fails_on_a_row_is_an_error_of_the_response(server, tmp_path):
    template = tmp_path / "t.jinja"
    template.write_text("{{ response }} {{ metadata.level }}")
    asked = judge(server, template_file=template)
    bad, good = asked.verify_all([Sample("r", "a"), Sample("r", "a", metadata={"level": 1})])
    assert bad.status is ERROR and "fails on this row: UndefinedError" in bad.detail
    assert good.status is OK


def test_the_verifier_of_a_configuration_may_be_the_judge(server):
    table = {"url": server.url, "model": "m"}
    config = RewardConfig.model_validate(
        {"verifier": "auto", "routes": {"chat": "judge", "math": "exact_match"}, "judge": table}
    )
    with RewardPools(config) as pools:
        outcomes = pools.verify_all([Sample("say Score: 4", "", "chat"), Sample("so 2", "2", "", "math")])
    assert [outcome.reward for outcome in outcomes] == [0.4, 1.0]
    assert json.loads(config.model_dump_json())["judge"]["url"] == server.url


def test_a_token_that_is_not_set_is_refused(server, monkeypatch):
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with pytest.raises(ValueError, match=r"reward\.judge\.token_variable = 'JUDGE_KEY': .* not set"):
        judge(server, token_variable="JUDGE_KEY")


def test_replies_of_a_real_server_are_votes_that_are_kept(tmp_path, monkeypatch):
    from tests.support.sglang_judge import KEY, chat_server
    from tests.support.tokenizers import byte_tokenizer

    samples = [
        Sample(f"response {number}", "42", messages=[{"role": "user", "content": "6*7"}])
        for number in range(3)
    ]
    # A random model says a digit or more and then the end, since all other tokens are out of its reach.
    allowed = byte_tokenizer().convert_tokens_to_ids([*"0123456789", "<eos>"])
    settings = {
        "model": "tiny",
        "votes": 4,
        "temperature": 1.0,
        "max_tokens": 100,
        "score_pattern": r"(\d)$",
        "max_score": 9,
        "parameters": {"logit_bias": {str(token): 100 for token in allowed}, "min_tokens": 1},
        "cache_dir": tmp_path / "replies",
        "token_variable": "JUDGE_KEY",
        "num_retries": 0,
    }
    monkeypatch.setenv("JUDGE_KEY", KEY)
    with chat_server(tmp_path) as url:
        asked = Judge(JudgeConfig.model_validate({"url": f"{url}/v1", **settings}))
        outcomes = asked.verify_all(samples)
        assert [outcome.status for outcome in outcomes] == [OK] * 3, outcomes
        monkeypatch.setenv("JUDGE_KEY", "another")
        refused = Judge(JudgeConfig.model_validate({"url": f"{url}/v1", **settings, "cache_dir": None}))
        (outcome,) = refused.verify_all(samples[:1])
        assert outcome.status is ERROR and "status 401" in outcome.detail
    for outcome in outcomes:
        scores = [int(score) for score in re.findall(r"\d", outcome.detail.partition(" of ")[0])]
        assert len(scores) == 4 and outcome.reward == pytest.approx(sum(scores) / 4 / 9)
    assert len({outcome.detail for outcome in outcomes}) == 3, "the model's votes differ"
    # The server is gone: whatever is equal now comes from the folder.
    again = asked.verify_all([*samples, Sample("another response", "42")])
    assert again[:3] == outcomes and again[3].is_away
