"""Secrets and the keys that follow from them differ wherever they must, and are equal on every rank."""

from megatron_prime.engines.sglang.access import key_of, shared_secret, store_key
from megatron_prime.engines.sglang.launch import LaunchPlan
from megatron_prime.engines.sglang.loader.signing import derive
from megatron_prime.rollout.ranks import Ranks

URLS = ("http://127.0.0.1:1", "http://127.0.0.1:2", "http://127.0.0.1:10")


def test_every_start_has_its_own_secret():
    secrets = {shared_secret(Ranks()) for _ in range(5)}
    assert len(secrets) == 5 and all(len(bytes.fromhex(secret)) == 32 for secret in secrets)


def test_rank_0_draws_the_secret_for_all():
    offered = []

    def gather(items):
        offered.append(items)
        return [["of rank 0"], []]

    assert shared_secret(Ranks(1, 2, gather)) == "of rank 0"
    assert offered == [[]]


def test_keys_differ_by_run_server_and_purpose():
    keys = [key_of(secret, url) for secret in ("a", "b") for url in URLS]
    keys += [store_key(secret) for secret in ("a", "b")]
    keys += [derive(store_key("a"), attempt) for attempt in ("1", "2")]
    assert len({*keys}) == len(keys) == 10
    assert key_of("a", URLS[0]) == keys[0]
    assert not [key for key in keys if len(key) != 64]


def test_a_plan_shows_no_secret(tmp_path):
    plan = LaunchPlan(tmp_path, "cpu", "fp32", 0, None, secret="0123456789abcdef")  # type: ignore[arg-type]
    assert "0123456789abcdef" not in repr(plan)
    assert "0123456789abcdef" not in str(plan.key_variables(URLS[0]))
