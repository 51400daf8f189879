"""All commands with their options, examples and help; a command is described here and nowhere else."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click

from megatron_prime import __version__
from megatron_prime.cli.arguments.config_command import (
    add_config_command,
    dry_run_option,
    option,
    path_option,
)
from megatron_prime.cli.arguments.formats import add_format_commands
from megatron_prime.cli.arguments.help_style import (
    NAME,
    SETTINGS,
    CommandsUnderHeadings,
    CommandWithExamples,
)
from megatron_prime.cli.arguments.options import Options
from megatron_prime.cli.arguments.own_commands import add_own_commands
from megatron_prime.cli.arguments.prm_commands import add_prm_commands
from megatron_prime.quickstart import TASKS


def _complete_gpu(_context: click.Context, _parameter: click.Parameter, word: str) -> list[str]:
    from megatron_prime.planning.gpus import KNOWN

    return [name for name in KNOWN if name.lower().startswith(word.lower())]


@click.group(
    cls=CommandsUnderHeadings,
    context_settings=SETTINGS,
    help="PRIME (arXiv 2502.01456) on Megatron-core: reinforcement learning with process rewards that nobody labels.",
    examples=(
        ("see a toy model learn on this machine, in minutes", "megatron-prime quickstart"),
        ("find every fault of a configuration before it costs GPU time", "megatron-prime check run.toml"),
        ("train; the same command continues a run that was stopped", "megatron-prime train run.toml"),
        ("options and examples of one command", "megatron-prime help train"),
    ),
)
@click.version_option(__version__, message=f"{NAME} %(version)s", help="show the version")
def top() -> None:
    """Hold all commands."""


_command = partial(add_config_command, top)


def _replay_option() -> click.Option:
    return path_option(
        "--replay-rollouts",
        metavar="RUN",
        help="train on the rollout log of RUN (a run_dir or its folder rollouts) and sample nothing",
    )


def _gpu_options() -> list[Any]:
    return [
        option(
            "--gpu",
            default="H100-80G",
            shell_complete=_complete_gpu,
            metavar="NAME",
            help="H100-80G (default), H200, A100-80G, A100-40G or B200",
        ),
        option(
            "--gpus",
            type=int,
            metavar="NUMBER",
            help="GPUs to train on; default parallel.num_processes",
        ),
        option("--gpu-set", multiple=True, metavar="FIGURE=VALUE", help="change a property of the GPU"),
    ]


def _length_options() -> list[Any]:
    return [
        option(
            f"--{name}-tokens",
            type=float,
            metavar="NUMBER",
            help=f"mean length of a {name}; default half of the longest",
        )
        for name in ("prompt", "response")
    ]


_command(
    "quickstart",
    "Train",
    "train a toy model end to end on a CPU, in minutes",
    {
        "Files and seed": [
            path_option(
                "--root",
                metavar="FOLDER",
                default=None,
                help="folder for all files; default runs/quickstart, or runs/quickstart-TASK for another task",
            ),
            option(
                "--task",
                type=click.Choice(TASKS),
                default=TASKS[0],
                help="chain (16 turns with remarks on steps, default), arithmetic (one turn), tools (a call of a tool)",
            ),
            option(
                "--seed",
                type=int,
                metavar="NUMBER",
                default=0,
                help="seed of the task, of the models and of the runs",
            ),
            option("--compare", is_flag=True, help="train with outcome rewards alone as well"),
            option("--fresh", is_flag=True, help="remove the files of an earlier quickstart first"),
        ],
    },
    (
        ("generate a task and a model, fine-tune it, then run PRIME", "megatron-prime quickstart"),
        ("with outcome rewards alone beside it", "megatron-prime quickstart --compare"),
        ("the same problems in one turn", "megatron-prime quickstart --task arithmetic"),
        ("a policy that learns to use a tool", "megatron-prime quickstart --task tools"),
        ("another seed, from scratch", "megatron-prime quickstart --seed 1 --fresh"),
    ),
    metavar="[KEY=VALUE]...",
)
_command(
    "train",
    "Train",
    "run PRIME; continues automatically from the newest checkpoint of run_dir",
    {
        "Instead of training": [
            dry_run_option(),
        ],
        "Debugging": [_replay_option()],
    },
    (
        ("train, or continue a run that was stopped", "megatron-prime train run.toml"),
        ("with two settings changed", "megatron-prime train run.toml policy.lr=1e-6 trainer.num_steps=400"),
        ("see what would run where, and start nothing", "megatron-prime train run.toml --dry-run"),
        (
            "train on what another run has sampled",
            "megatron-prime train run.toml --replay-rollouts runs/first",
        ),
        ("the same on two nodes", "torchrun --nnodes=2 --nproc-per-node=8 -m megatron_prime train run.toml"),
    ),
)
_command(
    "sft",
    "Train",
    "fine-tune the policy on demonstrations and write an HF checkpoint",
    {},
    (
        ("write the fine-tuned model to run_dir/sft", "megatron-prime sft run.toml"),
        (
            "other demonstrations, for 200 steps",
            "megatron-prime sft run.toml 'sft.data=[\"demos.jsonl\"]' sft.num_steps=200",
        ),
    ),
)
_command(
    "eval",
    "Evaluate",
    "sample on the held-out prompts and benchmarks from model.path and report accuracy",
    {},
    (
        ("accuracy of the model that the configuration names", "megatron-prime eval run.toml"),
        ("of a trained one", "megatron-prime eval run.toml model.path=runs/first/hf"),
        ("on one more benchmark", "megatron-prime eval run.toml evaluation.benchmarks.amc.path=amc.csv"),
    ),
)
add_prm_commands(top)


def _view(**values: Any) -> Options:  # noqa: ANN401
    return Options(command="view", config=None, overrides=[], **values)


top.add_command(
    CommandWithExamples(
        "view",
        "Evaluate",
        {
            "Output": [
                path_option(
                    "-o", "--output", metavar="FOLDER", help="default view/ or figures/ in the first run"
                ),
                option(
                    "--export",
                    type=click.Choice(("png", "svg")),
                    help="instead of pages, write each chart as a figure for a paper (needs matplotlib)",
                ),
            ],
            "Browser": [
                option(
                    "--serve",
                    is_flag=False,
                    flag_value=0,
                    type=click.IntRange(0, 65535),
                    metavar="[PORT]",
                    help="serve the pages on 127.0.0.1 and follow a run that goes on; default any free port",
                ),
                option("--no-open", is_flag=True, help="open no browser"),
            ],
        },
        (
            ("read what the model wrote and why it was rewarded", "megatron-prime view runs/first"),
            ("compare runs", "megatron-prime view runs/first runs/second -o compared"),
            ("follow a run, through a port that ssh forwards", "megatron-prime view runs/first --serve 6007"),
            ("figures for a paper", "megatron-prime view runs/first --export svg"),
        ),
        [("RUN", "folder of a run: its run_dir; several are overlaid")],
        params=[
            click.Argument(
                ["runs"], nargs=-1, required=True, metavar="RUN...", type=click.Path(path_type=Path)
            ),
            click.Option(["-q", "--quiet"], is_flag=True, help="print warnings and errors alone"),
        ],
        callback=_view,
        help="Show runs in a browser: curves, each token with its credit, and problems that changed.",
        short_help="show runs in a browser: curves, each token with its credit, and problems that changed",
    )
)
_command(
    "rollout",
    "Evaluate",
    "sample and verify the prompts of training steps from model.path, without training",
    {
        "Amount": [
            option(
                "--steps",
                type=click.IntRange(1),
                default=1,
                metavar="NUMBER",
                help="training steps whose prompts are sampled; default 1",
            ),
        ],
    },
    (
        (
            "see what the model writes in the first step",
            "megatron-prime rollout run.toml run_dir=runs/sampled",
        ),
        ("sample 20 steps", "megatron-prime rollout run.toml run_dir=runs/sampled --steps 20"),
    ),
)
_command(
    "check",
    "Prepare and check",
    "find every fault of a configuration and of its data, and print the batch arithmetic",
    {
        "Subject": [
            option(
                "--for",
                "target",
                type=click.Choice(("train", "sft", "train-prm", "eval", "eval-prm", "serve-prm", "rollout")),
                help="the command to check; by default train, or without data.train the one whose data are named",
            ),
            _replay_option(),
        ],
    },
    (
        ("before a job is queued, on a login node", "megatron-prime check run.toml"),
        ("what sft would refuse", "megatron-prime check run.toml --for sft"),
    ),
)
_command(
    "plan",
    "Prepare and check",
    "estimate a run without a GPU: memory, time, weight sync, layouts that fit",
    {
        "GPUs": _gpu_options(),
        "Assumptions": [
            *_length_options(),
            *(
                option(f"--{name}", type=float, metavar="NUMBER", help=text)
                for name, text in (
                    ("mfu", "fraction of the peak FLOPs that training reaches; default 0.4"),
                    (
                        "decode-efficiency",
                        "fraction of the memory bandwidth that decoding reaches; default 0.6",
                    ),
                    ("overhead-gib", "memory of a process outside of models, in GiB; default 3"),
                )
            ),
        ],
        "Output": [
            option("--json", type=click.Path(), metavar="FILE", help="write the plan to this file too")
        ],
    },
    (
        ("does it fit, how long is a step, and which layout is faster", "megatron-prime plan run.toml"),
        ("the same on 16 H200s", "megatron-prime plan run.toml --gpu H200 --gpus 16"),
        (
            "with the lengths and the speed that were measured",
            "megatron-prime plan run.toml --response-tokens 900 --mfu 0.35",
        ),
    ),
)
_command(
    "rehearse",
    "Prepare and check",
    "run a training step of chosen ranks at full size without GPUs: memory, collectives, waits, faults",
    {
        "Ranks": [
            option(
                "--ranks",
                default="stages",
                metavar="NUMBERS",
                help="such as 0,127; default stages: one of each pipeline stage, and their neighbours at both ends",
            ),
            option("--steps", type=int, default=1, metavar="NUMBER", help="training steps; default 1"),
            option("--jobs", type=int, metavar="NUMBER", help="ranks at a time; default one per core"),
        ],
        "GPUs": _gpu_options(),
        "Assumptions": _length_options(),
        "Output": [
            option("--json", type=click.Path(), metavar="FILE", help="write everything to this file too")
        ],
    },
    (
        ("does each pipeline stage run, and fit", "megatron-prime rehearse run.toml"),
        (
            "the last rank of 128, with a smaller batch",
            "megatron-prime rehearse run.toml --ranks 127 trainer.prompts_per_step=16",
        ),
    ),
)
_command(
    "doctor",
    "Prepare and check",
    "check environment, devices, file systems, engine and the ranks' network, and say how to fix faults",
    {
        "Limits": [
            option(
                "--timeout-s",
                type=float,
                default=30.0,
                metavar="SECONDS",
                help="deadline for the ranks to connect; default 30",
            )
        ],
    },
    (
        ("this machine, without a configuration", "megatron-prime doctor"),
        ("what a run needs, on every rank of a job", "srun ... megatron-prime doctor run.toml"),
    ),
    metavar="[CONFIG] [KEY=VALUE]...",
)
_command(
    "verify",
    "Prepare and check",
    "try the verifiers of a run on responses: the verdict and the reason of each",
    {
        "Many responses": [
            path_option(
                "--file",
                metavar="FILE",
                help="rows with response, answer and possibly the expected reward, source and ability; "
                "default data.train",
            ),
            option(
                "--rows",
                type=click.IntRange(1),
                metavar="NUMBER",
                help="rows of each file; default all of --file, 100 of data.train",
            ),
        ],
        "One response": [
            option("--response", metavar="TEXT", help="one response, to --answer"),
            option("--answer", metavar="TEXT", help="the ground truth of --response"),
            option(
                "--source", metavar="NAME", default="", help="data source of --response, for reward.routes"
            ),
            option("--ability", metavar="NAME", default="", help="ability of --response, for reward.routes"),
        ],
        "Output": [
            option(
                "--json",
                type=click.Path(),
                metavar="FILE",
                help="write the verdicts to this file too, one line each",
            )
        ],
    },
    (
        ("does every answer of the data earn its own reward?", "megatron-prime verify run.toml"),
        ("responses that a model wrote", "megatron-prime verify run.toml --file responses.jsonl"),
        ("one answer", "megatron-prime verify reward.verifier=math --response '0.5' --answer 1/2"),
    ),
    metavar="[CONFIG] [KEY=VALUE]...",
)
_command(
    "convert",
    "Convert",
    "write a model of a training checkpoint as an HF checkpoint",
    {
        "Source": [
            option(
                "--role",
                type=click.Choice(("policy", "prm")),
                default="policy",
                help="the model to write; default policy",
            ),
            path_option("--checkpoint", metavar="FOLDER", help="default: the newest complete one of run_dir"),
        ],
        "Output": [
            path_option("--output", metavar="FOLDER", required=True, help="folder to write; must not exist"),
            option(
                "--dtype",
                type=click.Choice(("keep", "fp32", "bf16", "fp16")),
                default="keep",
                help="number format of the weights; default keep",
            ),
            option("--compare-logits", is_flag=True, help="run both models on a short sequence, in memory"),
        ],
        "Speed": [
            option(
                "--workers",
                type=int,
                default=1,
                metavar="NUMBER",
                help="number of processes, each of which holds one tensor in memory; default 1",
            )
        ],
    },
    (
        ("the newest policy of a run", "megatron-prime convert run.toml --output policy"),
        ("its PRM, in bf16", "megatron-prime convert run.toml --role prm --dtype bf16 --output prm"),
    ),
)
add_format_commands(top)
_command(
    "from-megatron",
    "Convert",
    "write a configuration from the arguments of an existing Megatron-LM setup",
    {
        "Source": [
            option("--args", metavar="TEXT", help='the arguments as one string: --args="--lr 1e-6 ..."'),
            path_option("--args-file", metavar="FILE", help="a shell script (read, not run) or a YAML file"),
            path_option(
                "--model", metavar="FOLDER", required=True, help="HF checkpoint of the model: model.path"
            ),
        ],
        "Output": [
            path_option("-o", "--output", metavar="FILE", required=True, help="TOML file to write"),
            option(
                "--skip-refused",
                is_flag=True,
                help="leave out arguments that are refused instead of stopping",
            ),
        ],
    },
    (
        (
            "from a training script",
            "megatron-prime from-megatron --args-file pretrain.sh --model hf -o run.toml",
        ),
        (
            "from arguments",
            'megatron-prime from-megatron --args="--lr 1e-6 --bf16" --model hf -o run.toml',
        ),
    ),
    metavar="[KEY=VALUE]...",
)


def _one_source(callback: Callable[..., Options]) -> Callable[..., Options]:
    """Require exactly one of --args and --args-file."""

    def checked(**values: Any) -> Options:  # noqa: ANN401
        if (values["args"] is None) == (values["args_file"] is None):
            raise click.UsageError("name one of --args and --args-file", click.get_current_context())
        return callback(**values)

    return checked


_from_megatron = top.commands["from-megatron"]
assert _from_megatron.callback is not None
_from_megatron.callback = _one_source(_from_megatron.callback)


add_own_commands(top)
