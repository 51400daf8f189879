"""Check the verifiers of a run: their names, imports and sandbox."""

import re
import shutil
from collections.abc import Iterator
from urllib.parse import urlsplit

from megatron_prime.config.redaction import redact
from megatron_prime.config.run import PrimeConfig
from megatron_prime.config.tables.reward import JUDGE, CodeConfig, JudgeConfig, RewardConfig
from megatron_prime.preflight.imports import import_faults
from megatron_prime.rewards.user_function import FUNCTION
from megatron_prime.rewards.verifier import names as verifier_names


def reward_faults(config: PrimeConfig, command: str) -> Iterator[str]:
    """Yield each fault of the verifiers that a command may use."""
    if command in ("train", "evaluate", "rollout"):
        yield from verifier_faults(config.reward)


def verifier_faults(reward: RewardConfig) -> Iterator[str]:
    """Yield each fault of the verifiers that `[reward]` names."""
    # The registered name behind every import path names no function by itself.
    names = sorted({*verifier_names(), JUDGE} - {FUNCTION})
    for spec in reward.verifiers:
        key = "reward.verifier" if reward.verifier != "auto" else "reward.routes"
        if "://" in spec:
            if not _is_url(spec):
                yield f"{key} = {redact(repr(spec))} is no URL of the form http://host:8000/path"
        elif ":" in spec:
            yield from import_faults(key, spec, "function")
        elif spec not in names:
            yield (
                f"{key} = {spec!r}: known are {', '.join(names)}; a function is package.module:function, "
                "a reward server http://..."
            )
        elif spec == "code":
            yield from sandbox_faults(reward.code)
        elif spec == JUDGE:
            yield from _judge_faults(reward.judge)


def _is_url(spec: str) -> bool:
    try:
        url = urlsplit(spec)
        # Reading the port raises the error.
        is_complete = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:
        return False
    # RFC 3986 allows these only in escaped form. In a text they would hide where the URL ends.
    return is_complete and not re.search(r'[\s"<>\\^`{|}\x00-\x1f]', spec)


def _judge_faults(judge: JudgeConfig) -> Iterator[str]:
    # httpx and jinja2 are slow to import.
    from megatron_prime.rewards.judge.template import RequestTemplate
    from megatron_prime.rewards.remote import token_of

    if not judge.url:
        yield (
            "reward.judge.url is missing: the address of an OpenAI-compatible server, such as http://host:30000/v1"
        )
    elif not _is_url(judge.url):
        yield f"reward.judge.url = {redact(repr(judge.url))} is no URL of the form http://host:30000/v1"
    elif re.search(r"/completions/?$", judge.url):
        yield f"reward.judge.url = {redact(repr(judge.url))}: leave out /chat/completions, which is added"
    if not judge.model:
        yield "reward.judge.model is missing: the name of the model on the server"
    for check in (lambda: RequestTemplate(judge), lambda: token_of(judge, "reward.judge")):
        try:
            check()
        except ValueError as error:
            yield str(error)


def sandbox_faults(code: CodeConfig) -> Iterator[str]:
    """Yield each fault of the sandbox of `[reward.code]`."""
    if code.sandbox == "bubblewrap" and shutil.which("bwrap") is None:
        yield (
            "reward.code.sandbox = 'bubblewrap', but there is no bwrap: install it (apt-get install bubblewrap); "
            "'none-i-accept-the-risk' runs model-written code with the rights of this user"
        )
    for path in (code.python, *code.readable_paths):
        if path is not None and not path.exists():
            yield f"reward.code: {path} does not exist"
