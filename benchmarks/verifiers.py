"""Compare the math verifier to plain math-verify, and measure attacks on and the cost of the code verifier's sandbox.

`python -m benchmarks.verifiers` takes about three minutes. Both math verifiers judge the same hand-made cases
(tests/rewards/math/math_cases.toml) in the same run; math-verify is used as documented, with its own time limits.
"""

import json
import logging
import statistics
import time
import tomllib
from collections.abc import Callable
from pathlib import Path

import psutil
from math_verify import parse, verify

from megatron_prime.config.tables.reward import CodeConfig
from megatron_prime.rewards import VerifierPool
from megatron_prime.rewards.code.comparison import outputs_equal, results_equal
from megatron_prime.rewards.code.sandbox import Completed, Sandbox
from megatron_prime.rewards.math.answer import MathVerifier
from megatron_prime.rewards.math.ground_truths import alternatives
from megatron_prime.sample import Sample
from tests.rewards.code import sandbox_attacks
from tests.rewards.math.pathological_answers import ANSWERS

ROOT = Path(__file__).parents[1]

DEADLINE_S = 2.0
NUM_ROUNDS = 6

Judge = Callable[[str, str], float]
"""A function from response and ground truth to 0 or 1."""


def cases() -> dict[str, list[tuple[str, str, bool]]]:
    """Return, by kind, tuples of response, ground truth and whether the response is right."""
    table = tomllib.loads(
        (ROOT / "tests" / "rewards" / "math" / "math_cases.toml").read_text(encoding="utf-8")
    )
    return {
        kind: [
            (text if kind == "responses" else rf"Thus $\boxed{{{text}}}$.", answer, verdict == "right")
            for verdict, pairs in verdicts.items()
            for answer, text in pairs
        ]
        for kind, verdicts in table.items()
    }


def independent_cases() -> dict[str, list[tuple[str, str, bool]]]:
    """Return the same tuples by set, of cases whose authors knew the kinds of answers but no verifier."""
    by_set: dict[str, list[tuple[str, str, bool]]] = {}
    for line in Path(__file__).with_name("math_independent.jsonl").read_text(encoding="utf-8").splitlines():
        case = json.loads(line)
        of_set = by_set.setdefault(f"set {case['set']}", [])
        of_set.append((case["response"], case["ground_truth"], case["is_right"]))
    return by_set


def plain(response: str, answer: str) -> float:
    """Judge with math-verify as documented, by one ground truth of several; an exception counts as reward 0."""
    try:
        return float(any(verify(parse(f"${gold}$"), parse(response)) for gold in alternatives(answer)))
    except Exception:  # noqa: BLE001 - it may raise anything
        return 0.0


def mistakes(judge: Judge, of_kind: list[tuple[str, str, bool]]) -> tuple[int, int]:
    """Return the number of right answers that were rejected and of wrong ones that were accepted."""
    verdicts = [(judge(response, answer) == 1.0, is_right) for response, answer, is_right in of_kind]
    return sum(r and not v for v, r in verdicts), sum(v and not r for v, r in verdicts)


def print_accuracy() -> None:
    print("| kind | cases | ours | plain | plain rejects right | plain accepts wrong |")
    print("| --- | --- | --- | --- | --- | --- |")
    totals = [0] * 5
    for kind, of_kind in cases().items():
        rejected, accepted = mistakes(MathVerifier().verify, of_kind)
        plain_rejected, plain_accepted = mistakes(plain, of_kind)
        row = [len(of_kind), rejected, accepted, plain_rejected, plain_accepted]
        totals = [a + b for a, b in zip(totals, row, strict=True)]
        print(accuracy_row(kind.replace("_", " "), row))
    print(accuracy_row("all", totals))


def print_independent() -> None:
    print("\n| cases | right | ours rejects | plain rejects | wrong | ours accepts | plain accepts |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, of_set in independent_cases().items():
        (rejected, accepted), (plain_rejected, plain_accepted) = (
            mistakes(judge, of_set) for judge in (MathVerifier().verify, plain)
        )
        num_right = sum(is_right for *_, is_right in of_set)
        counts = (num_right, rejected, plain_rejected, len(of_set) - num_right, accepted, plain_accepted)
        print(f"| {name} | {' | '.join(map(str, counts))} |")


def accuracy_row(name: str, counts: list[int]) -> str:
    total, rejected, accepted, plain_rejected, plain_accepted = counts
    return (
        f"| {name} | {total} | {1 - (rejected + accepted) / total:.1%} "
        f"| {1 - (plain_rejected + plain_accepted) / total:.1%} | {plain_rejected} | {plain_accepted} |"
    )


def speeds(num_workers: int) -> tuple[float, float]:
    """Return answers per second (of the best round) and per CPU second of the workers, without their start."""
    pairs = [case[:2] for of_kind in cases().values() for case in of_kind]
    seconds = []
    with VerifierPool("math", num_workers, 30.0) as pool:
        before = cpu_seconds(pool)
        for _ in range(NUM_ROUNDS):
            start = time.perf_counter()
            pool.verify_all([Sample(*pair) for pair in pairs])
            seconds.append(time.perf_counter() - start)
        used = cpu_seconds(pool) - before
    return len(pairs) / min(seconds), NUM_ROUNDS * len(pairs) / used


def cpu_seconds(pool: VerifierPool) -> float:
    return sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in pool.worker_pids)


def pathological_seconds() -> tuple[list[float], int]:
    """Return the seconds of each answer, and the number of timeouts.

    After each answer a trivial one is judged, which pays for the restart of a worker that was killed.
    """
    seconds = []
    with VerifierPool("math", 1, DEADLINE_S) as pool:
        for answer, text in ANSWERS:
            start = time.perf_counter()
            pool.verify_all([Sample(rf"\boxed{{{text}}}", answer)])
            seconds.append(time.perf_counter() - start)
            pool.verify_all([Sample(r"\boxed{1}", "1")])
        return seconds, pool.counts["timeout"]


def print_attacks() -> None:
    """Print how each attack of the tests ends; placeholders are replaced by things that do not exist."""
    box = Sandbox(CodeConfig(memory_mib=512))
    print("\n| attack | passes | how it ends |\n| --- | --- | --- |")
    for name, code in sandbox_attacks.PRINTED.items():
        # The tests fill in real processes and ports; here the placeholders only have to be valid.
        done = box.run(code.replace("PARENT", "1").replace("PORT", "9"), b"13 29\n", 1.0)
        passes = done.exit_code == 0 and outputs_equal("42", done.stdout.decode(errors="replace"))
        print(attack_row(name, passes, done))
    for name, code in sandbox_attacks.CALLED.items():
        done = box.run(code, b"[13, 29]\n", 1.0, call="add")
        passes = done.exit_code == 0 and results_equal([42], done.stdout.decode(errors="replace"))
        print(attack_row(f"call: {name}", passes, done))


def attack_row(name: str, passes: bool, done: Completed) -> str:
    last_words = done.detail.splitlines()[-1][:70] if done.detail else f"prints {done.stdout[:30]!r}"
    ending = "killed" if done.exit_code is None else f"exit code {done.exit_code}"
    return f"| {name} | {'YES' if passes else 'no'} | {ending}: {last_words.replace('|', '/')} |"


def seconds_per_run(sandbox: str) -> float:
    """Return the median duration of a program that prints a sum."""
    box = Sandbox(CodeConfig(sandbox=sandbox))
    seconds = []
    for _ in range(30):
        start = time.perf_counter()
        box.run("print(sum(map(int, input().split())))", b"13 29\n", 10.0)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def main() -> None:
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    logging.getLogger("megatron_prime").setLevel(logging.ERROR)
    print_accuracy()
    print_independent()
    (one, one_cpu), (two, two_cpu) = speeds(1), speeds(2)
    print(f"\n{one:.0f} answers/s with one worker, {two:.0f} with two: {two / one:.2f}x")
    print(f"{one_cpu:.0f} answers per CPU second with one worker, {two_cpu:.0f} with two")
    seconds, num_timeouts = pathological_seconds()
    print(
        f"{len(seconds)} pathological answers: median {statistics.median(seconds):.3f} s, worst {max(seconds):.2f} s, "
        f"{num_timeouts} killed at the deadline of {DEADLINE_S} s"
    )
    boxed, bare = seconds_per_run("bubblewrap"), seconds_per_run("none-i-accept-the-risk")
    print(f"a test takes {1000 * boxed:.0f} ms in the sandbox, {1000 * bare:.0f} ms without")
    print_attacks()


if __name__ == "__main__":
    main()
