"""The commands about a PRM alone: its training on saved responses, and its evaluation."""

from megatron_prime.cli.arguments.config_command import add_config_command
from megatron_prime.cli.arguments.help_style import CommandsUnderHeadings


def add_prm_commands(program: CommandsUnderHeadings) -> None:
    """Add `train-prm` and `eval-prm`."""
    add_config_command(
        program,
        "train-prm",
        "Train",
        "train the PRM on saved responses with outcomes and write an HF checkpoint",
        {},
        (
            (
                "on what another run has sampled, to run_dir/prm",
                "megatron-prime train-prm run.toml 'prm_training.responses=[\"runs/first\"]'",
            ),
            (
                "with another objective, for 400 steps",
                "megatron-prime train-prm run.toml prm.loss=dpo prm_training.num_steps=400",
            ),
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
