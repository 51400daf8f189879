"""The commands about a PRM alone: its training on saved responses, its evaluation, and its service."""

import click

from megatron_prime.cli.arguments.config_command import add_config_command, dry_run_option, option
from megatron_prime.cli.arguments.help_style import CommandsUnderHeadings


def add_prm_commands(program: CommandsUnderHeadings) -> None:
    """Add `train-prm`, `eval-prm` and `serve-prm`."""
    add_config_command(
        program,
        "train-prm",
        "Train",
        "train the PRM on saved responses with outcomes and write an HF checkpoint",
        {"Instead of training": [dry_run_option()]},
        (
            (
                "on what another run has sampled, to run_dir/prm",
                "megatron-prime train-prm run.toml 'prm_training.responses=[\"runs/first\"]'",
            ),
            (
                "with another objective, for 400 steps",
                "megatron-prime train-prm run.toml prm.loss=dpo prm_training.num_steps=400",
            ),
            (
                "on responses of any policy, one with its outcome a line",
                "megatron-prime train-prm run.toml 'prm_training.responses=[\"a.jsonl\"]'",
            ),
            ("see what would run where, and start nothing", "megatron-prime train-prm run.toml --dry-run"),
        ),
    )
    add_config_command(
        program,
        "eval-prm",
        "Evaluate",
        "evaluate the PRM of prm.path against reference.path: best of N, ProcessBench, pairs",
        {},
        (
            ("judge the PRM on the files of [prm_evaluation]", "megatron-prime eval-prm run.toml"),
            ("a PRM that convert has written", "megatron-prime eval-prm run.toml prm.path=runs/first/prm"),
        ),
    )
    add_config_command(
        program,
        "serve-prm",
        "Evaluate",
        "score responses over HTTP by the PRM of prm.path and reference.path, on two SGLang servers",
        {
            "Address": [
                option(
                    "--port",
                    type=click.IntRange(0, 65535),
                    default=0,
                    metavar="PORT",
                    help="port of 127.0.0.1 to listen on; default any free one",
                )
            ]
        },
        (
            ("start the servers of both models, and serve", "megatron-prime serve-prm run.toml --port 8100"),
            (
                "the scores of a PRM that train-prm has written",
                "megatron-prime serve-prm run.toml --port 8100 prm.path=runs/a/prm",
            ),
        ),
    )
