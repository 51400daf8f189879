"""A killed run that is started again ends with exactly the numbers of an uninterrupted one."""

import itertools
import json
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from megatron_prime.training.health.stop import EXIT_CODE
from tests.support import overlap_worker, toy_worker
from tests.support.distributed_runner import run_distributed
from tests.support.metric_names import undocumented
from tests.support.toy_runs import (
    LAYOUTS,
    NUM_STEPS,
    SAVE_EVERY,
    Started,
    Toy,
    checkpoint_of,
    finish,
    is_logged,
    is_saving,
    records,
    rollouts,
    weights,
)
from tests.support.trace_files import read_trace
from tools.chaos import held_text

Moment = Callable[[Path], bool]
Ending = Callable[[Started], int]


def kill_all(started: Started) -> int:
    """Send SIGKILL to the whole process tree at once, and return the expected exit code."""
    for process in started.family():
        process.kill()
    started.process.kill()
    return -signal.SIGKILL


def kill_launcher(started: Started) -> int:
    started.family()
    started.process.kill()
    return -signal.SIGKILL


def kill_one_rank(started: Started) -> int:
    started.ranks()[1].kill()
    return 128 + signal.SIGKILL


def after_save(run_dir: Path) -> bool:
    return (checkpoint_of(run_dir, SAVE_EVERY) / "run.json").exists()


def in_first_save(run_dir: Path) -> bool:
    return is_saving(run_dir, SAVE_EVERY)


def in_last_save(run_dir: Path) -> bool:
    return is_saving(run_dir, NUM_STEPS)


def in_rollout_after_a_save(run_dir: Path) -> bool:
    if not is_logged(run_dir, SAVE_EVERY + 1):
        return False
    time.sleep(0.05)  # into the next step, which begins with its rollout
    return True


def _slow_but_one_process(layouts: Iterable[str]) -> list[Any]:
    return [name if name == "single" else pytest.param(name, marks=pytest.mark.slow) for name in layouts]


SCENARIOS: dict[str, list[tuple[Moment, Ending, int]]] = {
    # (moment of the end, how it is ended, number of steps that the next attempt resumes from)
    "single": [(after_save, kill_all, SAVE_EVERY), (in_last_save, kill_all, SAVE_EVERY)],
    "tensor=2": [(in_first_save, kill_launcher, 0)],
    "data=2": [(in_rollout_after_a_save, kill_one_rank, SAVE_EVERY)],
}


@pytest.mark.parametrize("layout", _slow_but_one_process(SCENARIOS))
def test_a_killed_run_resumes_with_the_numbers_of_an_uninterrupted_one(
    toy: Toy, layout_runs, tmp_path, layout
):
    unbroken = layout_runs.get(layout, toy.run_dir("single"))
    run_dir = tmp_path / "run"
    arguments = ["train", "run.toml", f"run_dir={run_dir}", *LAYOUTS.get(layout, [])]
    for moment, end, _ in SCENARIOS[layout]:
        with Started(toy.folder, *arguments) as started:
            started.wait_until(lambda moment=moment: moment(run_dir))
            code = end(started)
            assert started.all_gone(), started.output()
            assert started.process.returncode == code, started.output()
        assert not (run_dir / "hf").exists()
    finished = finish(toy.folder, *arguments)
    assert finished.returncode == 0, finished.stderr
    resumed_step = SCENARIOS[layout][-1][2]
    assert (f"resuming after step {resumed_step}" in finished.stdout) == bool(resumed_step)
    assert records(run_dir) == records(unbroken)
    assert rollouts(run_dir) == rollouts(unbroken)
    assert sorted(path.name for path in (run_dir / "rollouts").iterdir()) == [
        f"step-{step:08d}.parquet" for step in range(1, NUM_STEPS + 1)
    ]
    assert weights(run_dir / "hf") == weights(unbroken / "hf")
    assert sorted(path.name for path in (run_dir / "checkpoints").iterdir()) == sorted(
        path.name for path in (unbroken / "checkpoints").iterdir()
    )


STOPS: dict[str, tuple[int, Callable[[Started], Any]]] = {
    "single": (signal.SIGINT, lambda started: started.process),
    "pipeline=2": (signal.SIGTERM, lambda started: started.process),
    "context=2": (signal.SIGINT, lambda started: started.ranks()[1]),
    "data=2": (signal.SIGTERM, lambda started: started.ranks()[0]),
}
"""Layout -> the signal that asks for a stop, and the process that receives it."""


@pytest.mark.parametrize("layout", _slow_but_one_process(STOPS))
def test_a_run_that_is_asked_to_stop_saves_and_resumes_exactly(toy: Toy, layout_runs, tmp_path, layout):
    number, receiver = STOPS[layout]
    unbroken = layout_runs.get(layout, toy.run_dir("single"))
    run_dir = tmp_path / "run"
    # Background writes too: the signal reaches their processes, and must not end them.
    arguments = [
        "train",
        "run.toml",
        f"run_dir={run_dir}",
        "checkpoint.async_save=true",
        *LAYOUTS.get(layout, []),
    ]
    with Started(toy.folder, *arguments) as started:
        started.wait_until(lambda: is_logged(run_dir, 1))
        receiver(started).send_signal(number)
        assert started.all_gone(), started.output()
        assert started.process.returncode == EXIT_CODE, started.output()
    (done,) = re.findall(
        rf"stopped after step (\d) of {NUM_STEPS}, as asked; the same command resumes", started.output()
    )
    finished = finish(toy.folder, *arguments)
    assert finished.returncode == 0, finished.stderr
    assert f"resuming after step {done}" in finished.stdout
    assert records(run_dir) == records(unbroken)
    assert rollouts(run_dir) == rollouts(unbroken)
    assert weights(run_dir / "hf") == weights(unbroken / "hf")


def test_a_second_ctrl_c_ends_a_job_at_once(toy: Toy, tmp_path):
    arguments = ["train", "run.toml", f"run_dir={tmp_path}", "trainer.num_steps=200", *LAYOUTS["data=2"]]
    with Started(toy.folder, *arguments) as started:
        started.wait_until(lambda: is_logged(tmp_path, 1))
        started.ranks()[1].suspend()  # The step will never end.
        started.process.send_signal(signal.SIGINT)
        started.wait_until(lambda: "Ctrl-C again ends at once" in started.output())
        started.process.send_signal(signal.SIGINT)
        assert started.all_gone(5), started.output()
        assert started.process.returncode == 128 + signal.SIGINT


@pytest.mark.slow
def test_a_killed_run_with_environments_resumes_with_the_numbers_of_an_uninterrupted_one(toy: Toy, tmp_path):
    arguments = [
        *("train", "run.toml", "trainer.num_steps=3", "trainer.eval_every=2", "evaluation.benchmarks={}"),
        *("environment.name=tests.support.second_look:SecondLook", "environment.num_workers=2"),
        *("rollout.max_response_tokens=24", "environment.max_turn_tokens=10"),
    ]
    unbroken = finish(toy.folder, *arguments, f"run_dir={tmp_path / 'unbroken'}")
    assert unbroken.returncode == 0, unbroken.stdout + unbroken.stderr
    run_dir = tmp_path / "run"
    with Started(toy.folder, *arguments, f"run_dir={run_dir}") as started:
        started.wait_until(lambda: after_save(run_dir))
        kill_all(started)
        assert started.all_gone(), "environments outlive the run"
    finished = finish(toy.folder, *arguments, f"run_dir={run_dir}")
    assert f"resuming after step {SAVE_EVERY}" in finished.stdout, finished.stderr
    assert records(run_dir) == records(tmp_path / "unbroken")
    assert rollouts(run_dir) == rollouts(tmp_path / "unbroken")
    last = records(run_dir)[3]
    assert last["rollout/mean_turns"] > 1 and last["rollout/num_failed_episodes"] == 0
    assert last["rollout/mean_policy_tokens"] < last["rollout/mean_response_tokens"]


@pytest.fixture(scope="module")
def overlapping(toy: Toy) -> dict[str, Any]:
    """Run one step off, in the main thread and in a thread beside the training; return what the runs have printed."""
    background = [overlap_worker.IN_BACKGROUND]
    (alone,) = run_distributed(overlap_worker.alone, 1, str(toy.folder))
    runs = {"ahead data=2": [], "ahead data=2 in a thread": background}
    return (
        alone
        | run_distributed(
            overlap_worker.train,
            2,
            str(toy.folder),
            {name: [*LAYOUTS["data=2"], *overrides] for name, overrides in runs.items()},
        )[0]
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ahead", "ahead data=2"])
def test_what_is_sampled_beside_the_training_is_what_is_sampled_before_it(toy: Toy, overlapping, name):
    sequential, threaded = toy.run_dir(name), toy.run_dir(f"{name} in a thread")
    assert "is sampled in" not in overlapping[name]
    assert overlapping[f"{name} in a thread"].count("is sampled in a thread") == NUM_STEPS - 1
    assert records(threaded) == records(sequential)
    assert rollouts(threaded) == rollouts(sequential)
    assert weights(threaded / "hf") == weights(sequential / "hf")
    assert (threaded / "prompts.jsonl").read_bytes() == (sequential / "prompts.jsonl").read_bytes()
    steps = records(sequential)[1:]
    assert [step["rollout/staleness_mean"] for step in steps] == [0, 1, 1, 1]
    assert [step["rollout/staleness_max"] for step in steps] == [0, 1, 1, 1]
    assert [step["rollout/num_lost_batches"] for step in steps] == [0, 0, 0, 0]
    versions = [{row["policy_version"] for row in rows} for rows in rollouts(sequential).values()]
    assert versions == [{0}, {0}, {1}, {2}]
    assert undocumented(steps[0].keys() - {"step"}) == []
    # The first batch has the numbers of a run without overlap, and the second one is another.
    on_policy = records(toy.run_dir("single"))[1:]
    assert steps[0]["rollout/accuracy_batch"] == on_policy[0]["rollout/accuracy_batch"]
    assert steps[1]["policy/ref_kl"] != on_policy[1]["policy/ref_kl"]


HELD = ("held_batch.json", "held_batch.safetensors")
OVERLAPPING = {
    "ahead": (after_save, kill_all, SAVE_EVERY, []),
    "ahead data=2": (in_rollout_after_a_save, kill_one_rank, SAVE_EVERY, LAYOUTS["data=2"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OVERLAPPING)
def test_a_killed_run_that_samples_ahead_resumes_with_the_batch_that_its_checkpoint_holds(
    toy: Toy, overlapping, tmp_path, name
):
    del overlapping
    moment, end, resumed_step, layout = OVERLAPPING[name]
    unbroken, run_dir = toy.run_dir(name), tmp_path / "run"
    arguments = ["train", "run.toml", f"run_dir={run_dir}", *overlap_worker.OVERLAP, *layout]
    with Started(toy.folder, *arguments, overlap_worker.IN_BACKGROUND) as started:
        started.wait_until(lambda: moment(run_dir))
        end(started)
        assert started.all_gone(), started.output()
    saved, expected = checkpoint_of(run_dir, resumed_step), checkpoint_of(unbroken, resumed_step)
    assert held_text(saved) == held_text(expected) != "{}"
    assert (saved / HELD[1]).read_bytes() == (expected / HELD[1]).read_bytes()
    finished = finish(toy.folder, *arguments, overlap_worker.IN_BACKGROUND)
    assert finished.returncode == 0, finished.stderr
    assert f"resuming after step {resumed_step}" in finished.stdout
    assert records(run_dir) == records(unbroken)
    assert rollouts(run_dir) == rollouts(unbroken)
    assert (run_dir / "prompts.jsonl").read_bytes() == (unbroken / "prompts.jsonl").read_bytes()
    assert weights(run_dir / "hf") == weights(unbroken / "hf")
    assert not [file for file in HELD if (checkpoint_of(run_dir, NUM_STEPS) / file).exists()]


@pytest.mark.slow
def test_an_outage_while_a_batch_is_sampled_ahead_costs_the_next_step_its_overlap(toy: Toy, overlapping):
    (code, output), (code_after, output_after) = overlapping["outage"]
    assert (code, code_after) == (EXIT_CODE, 0), output + output_after
    assert f"stopped after step 2 of {NUM_STEPS}, the reward server has been away" in output
    assert "resuming after step 2" in output_after
    found, unbroken = records(toy.run_dir("ahead_outage")), records(toy.run_dir("ahead"))
    assert found[:3] == unbroken[:3], "the step beside which the server went away is completed"
    assert [step["rollout/staleness_max"] for step in found[1:]] == [0, 1, 0, 1]
    taken = [
        (toy.run_dir(name) / "prompts.jsonl").read_text().splitlines()[2]
        for name in ("ahead", "ahead_outage")
    ]
    first = [json.loads(line)["prompts"][0][0] for line in taken]
    assert first[0] == first[1], "its prompts are taken again"


@pytest.mark.slow
def test_a_run_that_is_asked_to_stop_while_it_samples_ahead_saves_that_batch(toy: Toy, overlapping, tmp_path):
    del overlapping
    unbroken, run_dir = toy.run_dir("ahead"), tmp_path / "run"
    arguments = [
        "train",
        "run.toml",
        f"run_dir={run_dir}",
        *overlap_worker.OVERLAP,
        overlap_worker.IN_BACKGROUND,
    ]
    with Started(toy.folder, *arguments) as started:
        started.wait_until(lambda: is_logged(run_dir, 1))
        started.process.send_signal(signal.SIGTERM)
        assert started.all_gone(), started.output()
        assert started.process.returncode == EXIT_CODE, started.output()
    # Without overlap by now: the batch of older weights is not trained on, and its prompts are taken again.
    shutil.copytree(run_dir, tmp_path / "on-policy")
    on_policy = finish(toy.folder, *arguments, f"run_dir={tmp_path / 'on-policy'}", "rollout.max_staleness=0")
    assert "its prompts are sampled again" in on_policy.stdout, on_policy.stderr
    *_, last = records(tmp_path / "on-policy")
    assert last["rollout/staleness_max"] == 0
    finished = finish(toy.folder, *arguments)
    assert finished.returncode == 0, finished.stderr
    assert records(run_dir) == records(unbroken)
    assert weights(run_dir / "hf") == weights(unbroken / "hf")


def test_a_run_with_a_damaged_newest_checkpoint_resumes_from_the_one_before(toy: Toy, tmp_path):
    unbroken, run_dir = toy.run_dir("single"), tmp_path / "run"
    shutil.copytree(unbroken, run_dir)
    shard = next((checkpoint_of(run_dir, NUM_STEPS) / "prm").glob("*.distcp"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    refused = finish(toy.folder, "train", "run.toml", f"run_dir={run_dir}", "checkpoint.on_damage=stop")
    assert refused.returncode == 1
    assert f"prm/{shard.name} has another checksum" in refused.stderr
    assert records(run_dir) == records(unbroken)
    finished = finish(toy.folder, "train", "run.toml", f"run_dir={run_dir}")
    assert finished.returncode == 0, finished.stderr
    assert f"WARNING: {checkpoint_of(run_dir, NUM_STEPS)} is damaged: prm/{shard.name}" in finished.stdout
    assert f"resuming after step {SAVE_EVERY}" in finished.stdout
    assert records(run_dir) == records(unbroken)
    assert weights(run_dir / "hf") == weights(unbroken / "hf")
    kept = sorted(path.name for path in (run_dir / "checkpoints").iterdir())
    assert kept == [
        f"damaged_step_{NUM_STEPS:08d}",
        *(f"step_{step:08d}" for step in (SAVE_EVERY, NUM_STEPS)),
    ]


def test_a_finished_run_that_is_started_again_changes_nothing(toy: Toy):
    code, output = toy.facts["again"]
    assert code == 0
    assert f"resuming after step {NUM_STEPS}" in output
    assert [record["step"] for record in records(toy.run_dir("single"))] == list(range(NUM_STEPS + 1))


def test_a_replay_of_all_groups_ends_with_the_same_weights_and_checkpoint(toy: Toy):
    code, output = toy.facts["replay"]
    assert code == 0, output
    assert "replaying the rollouts of single: nothing is sampled, verified or evaluated" in output
    original, replayed = toy.run_dir("single"), toy.run_dir("replayed")
    assert weights(replayed / "hf") == weights(original / "hf")
    assert rollouts(replayed) == rollouts(original)
    kept = [record for record in records(original) if record["step"]]
    again = [record for record in records(replayed) if record["step"]]
    for record, other in zip(kept, again, strict=True):
        assert {name: record[name] for name in other} == pytest.approx(other, abs=1e-6)
        assert all(name.startswith("eval/") for name in record.keys() - other.keys())
    states = [
        json.loads((checkpoint_of(folder, NUM_STEPS) / "run.json").read_text())
        for folder in (original, replayed)
    ]
    assert states[0]["prompt_stream"] == states[1]["prompt_stream"], "a run without replay continues alike"


def test_a_captured_step_has_a_timeline_that_agrees_with_its_metrics(toy: Toy):
    (path,) = (toy.run_dir("single") / "profile").iterdir()
    assert path.name == "step-00000002-rank-0.json.gz"
    trace = read_trace(path)
    lines = (toy.run_dir("single") / "metrics.jsonl").read_text().splitlines()
    (record,) = [record for record in map(json.loads, lines) if record["step"] == 2]
    phases = {event["name"]: event for event in trace.track("phases")}
    times = {name[5:-2]: record[name] for name in record if name.startswith("time/") and name.endswith("_s")}
    assert {"step", "weight_sync", "rollout", "logprobs", "prm", "advantage", "policy"} <= times.keys()
    for phase, seconds in times.items():
        assert phases[phase]["dur"] / 1e6 == pytest.approx(seconds, abs=0.02), phase
    step = phases["step"]
    # The evaluation after the step samples too.
    sampled = [
        event
        for event in trace.track("embedded engine")
        if event["name"] == "sampling" and event["ts"] < step["ts"] + step["dur"]
    ]
    idle_us = step["dur"] - sum(event["dur"] for event in sampled)
    assert idle_us / step["dur"] == pytest.approx(record["time/engine_idle_fraction"], abs=0.05)
    (verifier,) = [name for name in trace.threads.values() if name.startswith("verifier ")]
    assert {event["name"] for event in trace.track(verifier)} == {"idle", "verifying"}
    assert any(event["name"] == "aten::mm" for event in trace.events), "torch's operators are missing"


def test_every_metric_is_documented_and_transformers_loads_the_export(toy: Toy):
    for record in records(toy.run_dir("single")):
        assert undocumented(record.keys() - {"step"}) == []
    AutoModelForCausalLM.from_pretrained(toy.run_dir("single") / "hf")


def test_resume_never_refuses_a_used_run_dir(toy: Toy):
    code, output = toy.facts["never"]
    assert code == 2
    assert "checkpoint.resume = 'never', but run_dir = single holds step_00000004" in output


@pytest.mark.slow
def test_a_run_whose_reward_server_goes_away_resumes_with_the_numbers_of_an_undisturbed_one(toy: Toy):
    (found,) = run_distributed(toy_worker.outage_runs, 1, str(toy.folder))
    done = {"evaluation of step 2": 2, "step 4": 3, "evaluation of step 4": 4}
    for moment, step in done.items():
        code, output = found[moment]
        assert code == EXIT_CODE, output
        assert "the reward server is away" in output
        assert re.search(
            rf"stopped after step {step} of {NUM_STEPS}, the reward server has been away for \d+ s .*; "
            rf"the same command resumes after step {step}\n",
            output,
        )
    for before, after in zip(done, [*done, "back"][1:], strict=True):
        assert f"resuming after step {done[before]}" in found[after][1]
    assert found["back"][0] == 0, found["back"]
    assert "is finished: resuming after step 4 of 4 leaves nothing to do" in found["finished"][1]
    run_dir, unbroken = toy.run_dir("outages"), toy.run_dir("single")
    assert not (run_dir / "rollouts").exists(), "its results are equal without a rollout log"
    assert records(run_dir) == records(unbroken)
    assert weights(run_dir / "hf") == weights(unbroken / "hf")
    history = (run_dir / "prompts.jsonl").read_bytes()
    assert history == (unbroken / "prompts.jsonl").read_bytes()
    evaluated = json.loads((checkpoint_of(run_dir, NUM_STEPS) / "evaluated.json").read_text())
    assert evaluated == {"accuracy": records(run_dir)[-1]["eval/accuracy"]}


class _RewardServer(BaseHTTPRequestHandler):
    """Rewards every second response, and refuses some with a message that repeats the address."""

    count = itertools.count()

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        number = next(self.count)
        status = 400 if number % 16 == 0 else 200
        body = json.dumps({"reward": number % 2}) if status == 200 else f"bad: {self.path} {self.headers}"
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *arguments): ...  # type: ignore[override]


def test_a_run_shows_no_secret_of_an_address_and_is_private(toy: Toy, tmp_path):
    secret = "S3cr3tOfTheServer"
    run_dir = tmp_path / "runs" / "first"
    with ThreadingHTTPServer(("127.0.0.1", 0), _RewardServer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://user:{secret}@127.0.0.1:{server.server_port}/verify?token={secret}"
        settings = ["trainer.num_steps=1", "trainer.eval_every=1", "evaluation.benchmarks={}"]
        finished = finish(
            toy.folder, "train", "run.toml", f"run_dir={run_dir}", f"reward.verifier={url}", *settings
        )
        server.shutdown()
    assert finished.returncode == 0, finished.stderr
    assert "verification ended with error: http://***@127.0.0.1" in finished.stdout, finished.stdout
    assert secret not in finished.stdout + finished.stderr
    files = [path for path in run_dir.rglob("*") if path.is_file()]
    assert {"config.json", "metrics.jsonl", "attempt_0001.json"} <= {path.name for path in files}
    assert not [path for path in files if secret.encode() in path.read_bytes()]
    assert [path.stat().st_mode & 0o777 for path in (run_dir.parent, run_dir)] == [0o700, 0o700]
