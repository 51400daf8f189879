"""Errors during a run are one line with an exit code; bugs keep their traceback."""

import gc

import pytest

from megatron_prime.cli import commands
from megatron_prime.cli.commands import _call, _guarded, _warn


@pytest.mark.parametrize(
    "error", [ValueError("too wide"), OSError("disk full"), FloatingPointError("gradient")]
)
def test_an_error_during_the_run_is_one_line_with_code_1(capsys, monkeypatch, error):
    def fail() -> None:
        raise error

    monkeypatch.delenv("MEGATRON_PRIME_TRACEBACK", raising=False)
    assert _guarded(fail) == 1
    assert f"megatron-prime, rank 0: {type(error).__name__}: {error}" in capsys.readouterr().err
    monkeypatch.setenv("MEGATRON_PRIME_TRACEBACK", "1")
    with pytest.raises(type(error)):
        _guarded(fail)


def test_an_unexpected_error_keeps_its_traceback():
    with pytest.raises(KeyError):
        _guarded(lambda: {}["absent"])


def test_no_message_shows_the_secrets_of_an_address(capsys, monkeypatch):
    monkeypatch.delenv("MEGATRON_PRIME_TRACEBACK", raising=False)

    def fail() -> None:
        raise ValueError("http://u:SECRET@host/v?SECRET does not answer")

    assert _guarded(fail) == 1
    _warn(["'http://u:SECRET@host' is slow"])
    errors = capsys.readouterr().err
    assert (
        "http://***@host/v?*** does not answer" in errors and "WARNING: 'http://***@host' is slow" in errors
    )
    assert "SECRET" not in errors


def test_no_garbage_is_collected_while_a_command_is_imported(monkeypatch):
    states = []

    class Module:
        @staticmethod
        def command():
            states.append(gc.isenabled())

    def imported(name):
        states.append(gc.isenabled())
        if name.endswith("broken"):
            raise ImportError(name)
        return Module

    monkeypatch.setattr(commands, "import_module", imported)
    _call("train.command")
    with pytest.raises(ImportError):
        _call("broken.command")
    assert states == [False, True, False] and gc.isenabled()
