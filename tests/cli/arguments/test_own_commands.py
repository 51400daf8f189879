"""`help` shows what --help shows, and a shell completes with the printed script."""

import os
import shlex
import subprocess
import sys

import pytest

from megatron_prime.cli.arguments import parse


@pytest.mark.parametrize("name", ["plan", "quickstart", "completion"])
def test_help_shows_the_page_of_a_command(name, capsys):
    assert parse(["help", name]) == 0
    page = capsys.readouterr().out
    assert parse([name, "--help"]) == 0
    assert capsys.readouterr().out == page


def test_bash_runs_the_printed_script_and_completes(tmp_path):
    """A real bash evaluates the script, whose function asks the program on PATH for completions."""
    program = tmp_path / "megatron-prime"
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m megatron_prime "$@"\n')
    program.chmod(0o755)
    script = """
        eval "$(megatron-prime completion bash)"
        COMP_WORDS=(megatron-prime plan --gpu H) COMP_CWORD=3
        _megatron_prime_completion megatron-prime
        echo "${COMPREPLY[@]}"
        complete -p megatron-prime
    """
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    result = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, timeout=60, env=environment, check=True
    )
    completions, registered = result.stdout.splitlines()
    assert completions.split() == ["H100-80G", "H200"]
    assert registered.endswith("_megatron_prime_completion megatron-prime")
