"""The commands that change the format of a whole checkpoint. They need no configuration."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from megatron_prime.cli.arguments.help_style import CommandsUnderHeadings, CommandWithExamples, Examples
from megatron_prime.cli.arguments.options import Options

DTYPES = ("keep", "fp32", "bf16", "fp16")


def add_format_commands(program: CommandsUnderHeadings) -> None:
    """Add `hf-to-megatron` and `megatron-to-hf`."""
    _add(
        program,
        "hf-to-megatron",
        "write an HF checkpoint in Megatron's format (torch_dist), for any layout",
        ("MODEL", "folder of the HF checkpoint"),
        [],
        2048,
        (
            (
                "for Megatron-LM's --load, or as model.path of a run",
                "megatron-prime hf-to-megatron MODEL SAVE",
            ),
            (
                "with 8 processes, and compared",
                "megatron-prime hf-to-megatron MODEL SAVE --workers 8 --compare-logits",
            ),
        ),
    )
    _add(
        program,
        "megatron-to-hf",
        "write a Megatron checkpoint (torch_dist) of any layout as an HF checkpoint",
        ("CHECKPOINT", "folder with .metadata: of Megatron-LM, of a run, or of hf-to-megatron"),
        [
            click.Option(
                ["--hf"],
                type=click.Path(path_type=Path),
                metavar="FOLDER",
                help="HF folder of the model, whose config and tokenizer are copied; default beside the weights",
            ),
            click.Option(
                ["--dtype"],
                type=click.Choice(DTYPES),
                default="keep",
                help="type of the weights; keep: as stored",
            ),
        ],
        4768,
        (
            ("a checkpoint of Megatron-LM", "megatron-prime megatron-to-hf SAVE/iter_0000500 OUT --hf MODEL"),
            ("one that hf-to-megatron has written", "megatron-prime megatron-to-hf SAVE OUT --dtype bf16"),
        ),
    )


def _add(
    program: CommandsUnderHeadings,
    name: str,
    text: str,
    source: tuple[str, str],
    options: Sequence[click.Option],
    file_mib: int,
    examples: Examples,
) -> None:
    def callback(**values: Any) -> Options:  # noqa: ANN401
        return Options(command=name, config=None, overrides=[], **values)

    work = [
        click.Option(
            ["--workers"],
            type=click.IntRange(1),
            default=1,
            metavar="NUMBER",
            help="processes; each holds one tensor or one stored chunk in memory",
        ),
        click.Option(
            ["--compare-logits"],
            is_flag=True,
            help="also load both models and compare their log-probs on a short sequence",
        ),
    ]
    size = click.Option(
        ["--file-mib"],
        type=click.IntRange(1),
        default=file_mib,
        metavar="NUMBER",
        help=f"approximate size of a data file in MiB; default {file_mib}",
    )
    folder = click.Path(path_type=Path)
    program.add_command(
        CommandWithExamples(
            name,
            "Convert",
            {"Result": [*options, size], "Work": work},
            examples,
            [
                source,
                ("OUTPUT", "folder to write; must not exist. After an interruption the same command resumes"),
            ],
            params=[
                click.Argument(["source"], metavar=source[0], type=folder),
                click.Argument(["output"], metavar="OUTPUT", type=folder),
                click.Option(["-q", "--quiet"], is_flag=True, help="print warnings and errors alone"),
            ],
            callback=callback,
            help=f"{text[0].upper()}{text[1:]}. Every tensor is read back and compared.",
            short_help=text,
        )
    )
