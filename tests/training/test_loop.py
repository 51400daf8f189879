"""The training loop steps, evaluates, logs and saves in a fixed order."""

import contextlib
import datetime
import json
from pathlib import Path

import pytest

from megatron_prime.config.run import PrimeConfig
from megatron_prime.config.tables.guards import GuardsConfig
from megatron_prime.evaluation.accuracy import EvaluationReport, EvaluationResult
from megatron_prime.observability import Metrics, Progress
from megatron_prime.rollout.verification import VerifierAwayError
from megatron_prime.training.checkpoint.run_lock import FencedError
from megatron_prime.training.health.guards import Guards
from megatron_prime.training.health.stop import RunStopped
from megatron_prime.training.loop import Loop, LoopContext, changed_settings, first_date, save_resolved_config
from tests.support.toy_runs import NUM_STEPS, SAVE_EVERY, Toy, records


class Recorder:
    """A trainer, store, stream, evaluator and logger in one, which records its calls in order."""

    def __init__(self, step_index: int = 0) -> None:
        self.step_index = step_index
        self.calls: list[str] = []
        self.offset: int | None = None
        self.owed: dict[str, float] | None = None

    def step(self) -> Metrics:
        self.step_index += 1
        self.calls.append(f"step {self.step_index}")
        return Metrics({"time/step_s": 1.0})

    def save(self, roles: object, state) -> Path:
        # The state of a step that was given up is the one before it.
        assert (state.prompt_stream, state.seed, roles) == ({"offset": self.step_index}, 3, {})
        assert state.step_index == self.step_index
        self.calls.append(f"save {state.step_index}")
        self.owed = state.owed_metrics
        return Path("somewhere")

    def note_evaluation(self, step_index: int, accuracy: float) -> None:
        self.calls.append(f"note {accuracy} at {step_index}")

    def poll(self) -> None:
        return None

    finish = poll

    def state_dict(self) -> dict[str, int]:
        return {"offset": self.step_index if self.offset is None else self.offset}

    def evaluate(self, step_index: int) -> EvaluationReport:
        self.calls.append(f"evaluate {step_index}")
        return EvaluationReport({"": EvaluationResult(1, 1, 0.5, {1: 0.5}, 0, 0, 0.0, 1.0)})

    def probe(self) -> dict[str, float]:
        self.calls.append(f"probe {self.step_index}")
        return {"step_auroc": 0.25}

    def log(self, step: int, metrics: Metrics) -> None:
        groups = {"eval/accuracy": " with eval", "probe/step_auroc": " with probe"}
        measured = "".join(text for name, text in groups.items() if name in metrics)
        self.calls.append(f"log {step}{measured}")


class Rollouts:
    """A rollout log, which a thread may be writing."""

    def __init__(self, calls: list[str]) -> None:
        self._calls = calls

    def write(self) -> None:
        self._calls.append("rollouts")

    def finish(self) -> None:
        self._calls.append("all rollouts")


def quiet_guards() -> Guards:
    return Guards(GuardsConfig(), Path("unused"), False, lambda _: None)


def configured(**sections: dict) -> PrimeConfig:
    minimal = {"run_dir": "runs/a", "seed": 3, "model": {"path": "m"}, "trainer": {"num_steps": 3}}
    return PrimeConfig.model_validate(
        {**minimal, **{name: {**minimal.get(name, {}), **values} for name, values in sections.items()}}
    )


def calls_of(
    config: PrimeConfig, step_index: int = 0, evaluates: bool = True, probes: bool = False
) -> list[str]:
    recorder = Recorder(step_index)
    context = LoopContext(
        store=recorder,
        roles={},
        prompt_stream=recorder,
        evaluate=recorder.evaluate if evaluates else None,
        probe=recorder.probe if probes else None,
        logger=recorder,
        progress=Progress(enabled=False),
        guards=quiet_guards(),
    )
    Loop(config, recorder, context).run()
    return recorder.calls


def test_by_default_a_run_evaluates_first_and_last_and_saves_after_the_first_step_and_at_the_end():
    assert calls_of(configured()) == [
        *("evaluate 0", "log 0 with eval"),
        *("step 1", "log 1", "save 1", "step 2", "log 2"),
        *("step 3", "evaluate 3", "log 3 with eval", "save 3"),
    ]


def test_a_step_is_logged_before_it_is_saved():
    calls = calls_of(configured(trainer={"eval_every": 2}, checkpoint={"save_every": 1}), evaluates=True)
    assert calls[2:] == [
        *("step 1", "log 1", "save 1"),
        *("step 2", "evaluate 2", "log 2 with eval", "save 2"),
        *("step 3", "evaluate 3", "log 3 with eval", "save 3"),
    ]


def test_without_evaluation_data_nothing_is_logged_under_step_0():
    assert calls_of(configured(), evaluates=False)[0] == "step 1"


def test_the_prm_is_probed_first_and_last_and_every_few_steps():
    config = configured(prm={"probe_every": 2}, trainer={"num_steps": 5})
    calls = [call for call in calls_of(config, evaluates=False, probes=True) if not call.startswith("s")]
    assert calls == [
        *("probe 0", "log 0 with probe", "log 1", "probe 2", "log 2 with probe"),
        *("log 3", "probe 4", "log 4 with probe", "probe 5", "log 5 with probe"),
    ]


def test_a_probe_and_an_evaluation_of_one_step_are_one_record():
    calls = calls_of(configured(prm={"probe_every": 3}), probes=True)
    assert calls[:3] == ["probe 0", "evaluate 0", "log 0 with eval with probe"]
    assert calls[-4:] == ["probe 3", "evaluate 3", "log 3 with eval with probe", "save 3"]
    assert calls_of(configured(), step_index=2, probes=True)[:2] == ["step 3", "probe 3"]


def test_an_alarm_rings_in_the_step_of_the_probe(capsys):
    recorder, warnings = Recorder(), []
    logged = {}
    recorder.log = lambda step, metrics: logged.update({step: metrics})
    guards = Guards(GuardsConfig(), Path("unused"), False, warnings.append)
    config = configured(prm={"probe_every": 1}, trainer={"num_steps": 4})
    context = LoopContext(
        recorder, {}, recorder, None, recorder, Progress(enabled=False), guards, probe=recorder.probe
    )
    Loop(config, recorder, context).run()
    assert [logged[step].get("guards/probe_alarm") for step in range(5)] == [None, 0.0, 0.0, 1.0, 1.0]
    assert len(warnings) == 1
    assert warnings[0].startswith("step 3: probe/step_auroc is 0.25")


def test_a_resumed_loop_runs_the_remaining_steps_without_a_first_evaluation():
    assert calls_of(configured(), step_index=2) == ["step 3", "evaluate 3", "log 3 with eval", "save 3"]


def test_every_sampled_prompt_is_recorded_in_prompts_jsonl(toy: Toy):
    run_dir = toy.run_dir("single")
    history = records(run_dir)
    groups: list[list] = []
    for step, line in enumerate((run_dir / "prompts.jsonl").read_text().splitlines(), start=1):
        record = json.loads(line)
        assert record["step"] == step
        metrics = history[step]
        groups += record["prompts"]
        assert len(record["prompts"]) == metrics["rollout/num_prompts_sampled"]
        assert [verdict for _, _, verdict in record["prompts"]].count("dropped_too_hard") == (
            metrics["rollout/num_groups_dropped_too_hard"]
        )
        seen = {index for index, _, _ in groups}
        assert metrics["prompts/num_seen"] == len(seen)
        assert metrics["prompts/mean_times_sampled"] == pytest.approx(len(groups) / len(seen))
    assert step == NUM_STEPS


def test_a_finished_loop_does_nothing():
    assert calls_of(configured(), step_index=3) == []


def test_a_real_run_evaluates_and_saves_when_it_is_due(toy: Toy):
    history = records(toy.run_dir("single"))
    assert [record["step"] for record in history] == list(range(NUM_STEPS + 1))
    assert [record["step"] for record in history if "eval/accuracy" in record] == [0, 2, 4]
    saved = sorted(path.name for path in (toy.run_dir("single") / "checkpoints").iterdir())
    assert saved == [f"step_{step:08d}" for step in (SAVE_EVERY, NUM_STEPS)]


def test_the_saved_configuration_reads_back_equal(tmp_path):
    config = configured(policy={"lr": 2e-6}).model_copy(update={"run_dir": tmp_path / "new" / "run"})
    save_resolved_config(config, config.run_dir)
    written = json.loads((tmp_path / "new/run/config.json").read_text())
    assert written["policy"]["lr"] == 2e-6
    assert PrimeConfig.model_validate(written) == config


@pytest.mark.parametrize("step_index", [0, 1])
def test_an_error_of_the_trainer_is_raised_and_nothing_is_saved(step_index):
    recorder = Recorder(step_index)

    def fail() -> Metrics:
        raise FloatingPointError("gradient")

    recorder.step = fail
    context = LoopContext(recorder, {}, recorder, None, recorder, Progress(enabled=False), quiet_guards())
    with pytest.raises(FloatingPointError):
        Loop(configured(), recorder, context).run()
    assert recorder.calls == []


def test_settings_that_changed_since_the_last_start_are_reported(tmp_path):
    values = {"run_dir": tmp_path, "model": {"path": "m"}, "trainer": {"num_steps": 3}}
    assert changed_settings(PrimeConfig.model_validate(values), tmp_path) == []
    save_resolved_config(PrimeConfig.model_validate(values), tmp_path)
    assert changed_settings(PrimeConfig.model_validate(values), tmp_path) == []
    other = values | {"policy": {"lr": 0.5}, "prm": {"enabled": False}}
    assert changed_settings(PrimeConfig.model_validate(other), tmp_path) == [
        "policy.lr: 5e-07 -> 0.5",
        "prm.enabled: True -> False",
    ]


@pytest.mark.parametrize("choice", ["stop", "continue"])
def test_a_failed_checkpoint_write_follows_on_write_error(choice, capsys):
    recorder = Recorder()
    save = recorder.save

    def fail_at_first(roles: object, state) -> Path:
        if state.step_index == 1:
            raise OSError("no space left")
        return save(roles, state)

    recorder.save = fail_at_first
    context = LoopContext(recorder, {}, recorder, None, recorder, Progress(enabled=True), quiet_guards())
    loop = Loop(configured(checkpoint={"save_every": 1, "on_write_error": choice}), recorder, context)
    if choice == "stop":
        with pytest.raises(OSError, match="no space"):
            loop.run()
        assert recorder.calls == ["step 1", "log 1"]
    else:
        loop.run()
        assert recorder.calls == ["step 1", "log 1", "step 2", "log 2", "save 2", "step 3", "log 3", "save 3"]
        assert "WARNING: no space left. Training continues" in capsys.readouterr().out


def test_the_last_checkpoint_must_be_written(capsys):
    recorder = Recorder(step_index=2)

    def fail() -> None:
        raise OSError("no space left")

    recorder.finish = fail
    context = LoopContext(recorder, {}, recorder, None, recorder, Progress(enabled=False), quiet_guards())
    with pytest.raises(OSError, match="no space"):
        Loop(configured(checkpoint={"on_write_error": "continue"}), recorder, context).run()


def test_a_fenced_run_logs_nothing():
    recorder = Recorder()

    @contextlib.contextmanager
    def fence():
        if recorder.calls:
            raise FencedError("another attempt")
        yield

    context = LoopContext(
        recorder, {}, recorder, None, recorder, Progress(enabled=False), quiet_guards(), fence
    )
    with pytest.raises(FencedError):
        Loop(configured(), recorder, context).run()
    assert recorder.calls == ["step 1"]


def test_a_run_that_is_asked_to_stop_saves_after_the_step_and_stops():
    recorder = Recorder()
    context = LoopContext(
        store=recorder,
        roles={},
        prompt_stream=recorder,
        evaluate=None,
        logger=recorder,
        progress=Progress(enabled=False),
        guards=quiet_guards(),
        is_stopping=lambda: recorder.step_index == 2,
    )
    with pytest.raises(RunStopped, match=r"stopped after step 2 of 3, as asked; .* resumes after step 2"):
        Loop(configured(checkpoint={"save_every": 0}), recorder, context).run()
    assert recorder.calls[-2:] == ["log 2", "save 2"]
    assert "save 1" not in recorder.calls


def outage_in(recorder: Recorder, method: str, at: int):
    """Let a method of a recorder find the reward server away at a step."""
    original = getattr(recorder, method)

    def away(*arguments):
        if recorder.step_index == at:
            if method == "step":
                recorder.offset = 99  # The step had taken prompts.
            raise VerifierAwayError("the reward server has been away for 600 s")
        return original(*arguments)

    setattr(recorder, method, away)


OUTAGES = {
    # method, steps done, step_index at the start of the attempt -> last calls, begin of the next attempt
    "in the first step": ("step", 0, 0, [], "from the first step"),
    "in the first step of an attempt": ("step", 1, 1, [], "after step 1"),
    "in a later step": ("step", 1, 0, ["step 1", "log 1", "save 1"], "after step 1"),
    "in a step after a save": ("step", 2, 0, ["log 1", "step 2", "log 2", "save 2"], "after step 2"),
    "in the first evaluation": ("evaluate", 0, 0, [], "from the first step"),
    "in an evaluation": ("evaluate", 2, 0, ["step 2", "log 2", "save 2"], "after step 2"),
    "in the last evaluation": ("evaluate", 3, 2, ["step 3", "log 3", "save 3"], "after step 3"),
}


@pytest.mark.parametrize("outage", OUTAGES)
def test_a_run_whose_reward_server_is_away_saves_and_stops(outage):
    method, at, start, last_calls, begin = OUTAGES[outage]
    recorder = Recorder(start)
    outage_in(recorder, method, at)
    evaluate = (lambda *arguments: recorder.evaluate(*arguments)) if method == "evaluate" else None
    context = LoopContext(recorder, {}, recorder, evaluate, recorder, Progress(enabled=False), quiet_guards())
    config = configured(checkpoint={"save_every": 0}, trainer={"eval_every": 2})
    with pytest.raises(
        RunStopped, match=f"the reward server has been away for 600 s; the same command resumes {begin}$"
    ):
        Loop(config, recorder, context).run()
    assert recorder.calls[len(recorder.calls) - len(last_calls) :] == last_calls
    assert last_calls or recorder.calls == []
    assert (recorder.owed is not None) == (method == "evaluate" and at > 0)


@pytest.mark.parametrize("done", [2, 3])
def test_an_evaluation_that_an_outage_prevented_is_done_first_by_the_next_attempt(done):
    first = Recorder()
    outage_in(first, "evaluate", at=done)
    config = configured(checkpoint={"save_every": 0}, trainer={"eval_every": 2})
    quiet, guards = Progress(enabled=False), quiet_guards()
    evaluate = lambda *arguments: first.evaluate(*arguments)  # noqa: E731 - replaced in the meantime
    with pytest.raises(RunStopped):
        Loop(config, first, LoopContext(first, {}, first, evaluate, first, quiet, guards)).run()
    assert first.owed["time/step_s"] == 1.0
    assert "eval/accuracy" not in first.owed

    still_away = Recorder(done)
    outage_in(still_away, "evaluate", at=done)
    context = LoopContext(
        still_away, {}, still_away, still_away.evaluate, still_away, quiet, guards, owed_metrics=first.owed
    )
    with pytest.raises(RunStopped, match=f"stopped after step {done} of 3, .* resumes after step {done}"):
        Loop(config, still_away, context).run()
    assert still_away.calls == []

    second = Recorder(done)
    context = LoopContext(second, {}, second, second.evaluate, second, quiet, guards, owed_metrics=first.owed)
    Loop(config, second, context).run()
    assert second.calls[:3] == [f"evaluate {done}", f"log {done} with eval", f"note 0.5 at {done}"]
    assert second.calls[3:4] == (["step 3"] if done == 2 else [])


class BackgroundStore(Recorder):
    """A recorder whose saves fail later, in the background, at some steps."""

    def __init__(self, *failing: int) -> None:
        super().__init__()
        self.failing = failing
        self.pending: int | None = None
        self.on_disk: list[int] = []

    def save(self, roles: object, state) -> None:
        super().save(roles, state)
        self.pending = state.step_index

    def poll(self) -> None:
        return None

    def finish(self) -> Path | None:
        step, self.pending = self.pending, None
        if step in self.failing:
            self.failing = ()
            raise OSError("no space left")
        if step is not None:
            self.on_disk.append(step)
        return None if step is None else Path(f"step_{step}")


@pytest.mark.parametrize(("failing", "on_disk"), [((), [1, 2]), ((1,), [2]), ((2,), [1, 2])])
def test_a_save_that_failed_in_the_background_is_no_saved_step(failing, on_disk):
    store = BackgroundStore(*failing)
    outage_in(store, "step", at=2)
    context = LoopContext(store, {}, store, None, store, Progress(enabled=False), quiet_guards())
    config = configured(checkpoint={"save_every": 1, "on_write_error": "continue", "async_save": True})
    with pytest.raises(RunStopped, match=r"stopped after step 2 of 3, .* resumes after step 2$"):
        Loop(config, store, context).run()
    assert store.on_disk == on_disk
    assert store.on_disk[-1] == 2


@pytest.mark.parametrize("choice", ["stop", "continue"])
def test_a_log_that_cannot_be_written_follows_on_write_error(choice, capsys):
    recorder = Recorder()
    log = recorder.log

    def fail_at_first(step: int, metrics: Metrics) -> None:
        if step == 1:
            raise OSError(28, "cannot be written: No space left on device", "run/metrics.jsonl")
        log(step, metrics)

    recorder.log = fail_at_first
    context = LoopContext(recorder, {}, recorder, None, recorder, Progress(enabled=True), quiet_guards())
    loop = Loop(configured(checkpoint={"on_write_error": choice}), recorder, context)
    if choice == "stop":
        with pytest.raises(OSError, match=r"No space left on device: 'run/metrics\.jsonl'"):
            loop.run()
    else:
        loop.run()
        assert recorder.calls[-2:] == ["log 3", "save 3"]
        assert "run/metrics.jsonl'. Training continues" in capsys.readouterr().out


@pytest.mark.parametrize(
    "content", [None, "", "{}", '{"data": {"date": null}}', '{"data": {"date": "someday"}}']
)
def test_the_date_of_a_run_is_that_of_its_first_start(content, tmp_path):
    today = datetime.date.today()
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    assert first_date(tmp_path) == today
    config = configured(data={"date": "2026-01-31"}).model_copy(update={"run_dir": tmp_path})
    save_resolved_config(config, config.run_dir)
    assert first_date(tmp_path) == config.data.date == datetime.date(2026, 1, 31)
    assert changed_settings(config, config.run_dir) == []


def test_the_rollout_log_is_complete_before_each_checkpoint():
    recorder = Recorder()
    context = LoopContext(
        recorder, {}, recorder, None, recorder, Progress(enabled=False), quiet_guards(),
        recorder=Rollouts(recorder.calls),
    )  # fmt: skip
    Loop(configured(checkpoint={"save_every": 2}), recorder, context).run()
    steps = [[f"step {step}", "rollouts", f"log {step}"] for step in (1, 2, 3)]
    assert recorder.calls == [
        *steps[0], *steps[1], "all rollouts", "save 2", *steps[2], "all rollouts", "save 3"
    ]  # fmt: skip
