"""Completed saves are reported; a failed one ends the run only where configured."""

from pathlib import Path

import pytest

from megatron_prime.observability import Progress
from megatron_prime.training.checkpoint.saver import Saver
from megatron_prime.training.checkpoint.store import RunState

STATE = RunState(step_index=3, prompt_stream={}, seed=0)


class Store:
    """A store that writes in the background; the calls named in `failing` raise."""

    def __init__(self, *failing: str) -> None:
        self.failing = failing
        self.calls: list[str] = []
        self.is_pending = False
        self.noted: list[tuple[int, float]] = []

    def save(self, roles: object, state: RunState) -> None:
        self._note("save")
        self.is_pending = True

    def poll(self) -> Path | None:
        return self._complete("poll")

    def finish(self) -> Path | None:
        return self._complete("finish")

    def note_evaluation(self, step_index: int, accuracy: float) -> None:
        self.noted.append((step_index, accuracy))
        self._note("note")

    def _complete(self, name: str) -> Path | None:
        self._note(name)
        path = Path("step_3") if self.is_pending else None
        self.is_pending = False
        return path

    def _note(self, name: str) -> None:
        self.calls.append(name)
        if name in self.failing:
            raise OSError("disk full")


def test_a_save_in_the_background_is_reported_when_it_is_complete(capsys):
    store = Store()
    saver = Saver(store, "stop", Progress())
    saver.save({}, STATE, must_succeed=False)
    assert capsys.readouterr().out == ""
    saver.poll()
    assert capsys.readouterr().out.startswith("saved step_3; training waited ")
    saver.poll()
    assert capsys.readouterr().out == ""
    assert store.calls == ["finish", "save", "poll", "poll"]


def test_a_save_that_must_succeed_is_complete_on_return(capsys):
    store = Store()
    Saver(store, "continue", Progress()).save({}, STATE, must_succeed=True)
    assert store.calls == ["finish", "save", "finish"]
    assert "saved step_3" in capsys.readouterr().out


@pytest.mark.parametrize("call", ["poll", "finish"])
def test_a_failed_write_warns_or_ends_the_run_as_configured(call, capsys):
    getattr(Saver(Store(call), "continue", Progress()), call)()
    expected = "WARNING: disk full. Training continues (checkpoint.on_write_error)\n"
    assert capsys.readouterr().out == expected
    with pytest.raises(OSError, match="disk full"):
        getattr(Saver(Store(call), "stop", Progress()), call)()


@pytest.mark.parametrize("failing", ["save", "poll", "finish", None])
def test_a_step_counts_as_saved_when_it_is_complete(failing):
    store = Store()
    saver = Saver(store, "continue", Progress(enabled=False), saved_step=1)
    saver.save({}, STATE, must_succeed=False)
    assert saver.saved_step == 1
    store.failing = (failing,)
    {"save": lambda: saver.save({}, STATE, False), "poll": saver.poll}.get(failing, saver.finish)()
    assert saver.saved_step == (3 if failing in (None, "save") else 1)


def test_a_note_that_cannot_be_written_follows_on_write_error(capsys):
    store = Store("note")
    Saver(store, "continue", Progress(), saved_step=3).note_evaluation(0.5)
    assert "WARNING: disk full" in capsys.readouterr().out
    with pytest.raises(OSError, match="disk full"):
        Saver(store, "stop", Progress(), saved_step=3).note_evaluation(0.5)
    assert store.noted == [(3, 0.5)] * 2


def test_a_save_that_must_succeed_always_raises(capsys):
    with pytest.raises(OSError, match="disk full"):
        Saver(Store("save"), "continue", Progress()).save({}, STATE, must_succeed=True)
    Saver(Store("save"), "continue", Progress()).save({}, STATE, must_succeed=False)
    assert "WARNING" in capsys.readouterr().out
