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


def test_bash_runs_the_printed_script_and_completes():
    """A real bash evaluates the script, whose function asks the program for completions."""
    script = f"""
        megatron-prime() {{ {shlex.quote(sys.executable)} -m megatron_prime "$@"; }}
        eval "$(megatron-prime completion bash)"
        COMP_WORDS=(megatron-prime plan --gpu H) COMP_CWORD=3
        _megatron_prime_completion megatron-prime
        echo "${{COMPREPLY[@]}}"
        complete -p megatron-prime
    """
    result = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, timeout=60, env={**os.environ}, check=True
    )
    completions, registered = result.stdout.splitlines()
    assert completions.split() == ["H100-80G", "H200"]
    assert registered.endswith("_megatron_prime_completion megatron-prime")
