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

    def step(self) -> Metrics:
        self.step_index += 1
        self.calls.append(f"step {self.step_index}")
        return Metrics({"time/step_s": 1.0})

    def save(self, roles: object, state) -> Path:
        # The state of a step that was given up is the one before it.
        assert (state.prompt_stream, state.seed, roles) == ({"offset": self.step_index}, 3, {})
        assert state.step_index == self.step_index
        self.calls.append(f"save {state.step_index}")
        return Path("somewhere")

    def poll(self) -> None:
        return None

    finish = poll

    def state_dict(self) -> dict[str, int]:
        return {"offset": self.step_index if self.offset is None else self.offset}

    def evaluate(self, step_index: int) -> EvaluationReport:
        self.calls.append(f"evaluate {step_index}")
        return EvaluationReport({"": EvaluationResult(1, 1, 0.5, {1: 0.5}, 0, 0, 0.0, 1.0)})

    def log(self, step: int, metrics: Metrics) -> None:
        self.calls.append(f"log {step}{' with eval' if 'eval/accuracy' in metrics else ''}")


def quiet_guards() -> Guards:
    return Guards(GuardsConfig(), Path("unused"), False, lambda _: None)


def configured(**sections: dict) -> PrimeConfig:
    minimal = {"run_dir": "runs/a", "seed": 3, "model": {"path": "m"}, "trainer": {"num_steps": 3}}
    return PrimeConfig.model_validate(
        {**minimal, **{name: {**minimal.get(name, {}), **values} for name, values in sections.items()}}
    )


def calls_of(config: PrimeConfig, step_index: int = 0, evaluates: bool = True) -> list[str]:
    recorder = Recorder(step_index)
    context = LoopContext(
        store=recorder,
        roles={},
        prompt_stream=recorder,
        evaluate=recorder.evaluate if evaluates else None,
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
    with pytest.raises(RunStopped, match="stopped after step 2 of 3, as asked"):
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
    # method, steps done, step_index at the start of the attempt -> last calls
    "in the first step": ("step", 0, 0, []),
    "in the first step of an attempt": ("step", 1, 1, []),
    "in a later step": ("step", 1, 0, ["step 1", "log 1", "save 1"]),
    "in a step after a save": ("step", 2, 0, ["log 1", "step 2", "log 2", "save 2"]),
    "in the first evaluation": ("evaluate", 0, 0, []),
    "in an evaluation": ("evaluate", 2, 0, ["step 2", "log 2", "save 2"]),
}


@pytest.mark.parametrize("outage", OUTAGES)
def test_a_run_whose_reward_server_is_away_saves_and_stops(outage):
    method, at, start, last_calls = OUTAGES[outage]
    recorder = Recorder(start)
    outage_in(recorder, method, at)
    evaluate = (lambda *arguments: recorder.evaluate(*arguments)) if method == "evaluate" else None
    context = LoopContext(recorder, {}, recorder, evaluate, recorder, Progress(enabled=False), quiet_guards())
    config = configured(checkpoint={"save_every": 0}, trainer={"eval_every": 2})
    with pytest.raises(
        RunStopped, match=r"the reward server has been away for 600 s; the same command resumes"
    ):
        Loop(config, recorder, context).run()
    assert recorder.calls[len(recorder.calls) - len(last_calls) :] == last_calls
    assert last_calls or recorder.calls == []


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
