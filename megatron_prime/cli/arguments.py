"""The arguments of all commands. Imports nothing that is slow."""

import argparse
from pathlib import Path

from megatron_prime import __version__


def parser() -> argparse.ArgumentParser:
    """Return the argument parser of all commands."""
    top = argparse.ArgumentParser(
        prog="megatron-prime", description="PRIME (arXiv 2502.01456) on Megatron-core."
    )
    top.add_argument("--version", action="version", version=f"megatron-prime {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in (
        ("train", "run PRIME; continues automatically from the newest checkpoint of run_dir"),
        ("sft", "fine-tune the policy on demonstrations and write an HF checkpoint"),
        ("eval", "sample on the held-out prompts and benchmarks from model.path and report accuracy"),
        ("eval-prm", "evaluate the PRM of prm.path against reference.path: best of N, ProcessBench, pairs"),
        ("check", "find every fault of a training configuration, and print its batch arithmetic"),
        (
            "plan",
            "estimate a run without a GPU: memory, time, weight sync, layouts that fit",
        ),
        (
            "doctor",
            "check environment, devices, file systems, engine and the ranks' network, and say how to fix faults",
        ),
        ("convert", "write a model of a training checkpoint as an HF checkpoint"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("config", type=Path, nargs="?" if name == "doctor" else None, help="TOML file")
        if name == "train":
            command.add_argument(
                "--dry-run",
                nargs="?",
                const="-",
                metavar="FOLDER",
                help="start nothing: print the arithmetic, the process map and the commands (and write them to FOLDER)",
            )
        if name == "doctor":
            command.add_argument(
                "--timeout-s", type=float, default=30.0, help="deadline for the ranks to connect"
            )
        if name == "convert":
            command.add_argument("--role", choices=("policy", "prm"), default="policy")
            command.add_argument(
                "--checkpoint", type=Path, help="default: the newest complete one of run_dir"
            )
            command.add_argument("--output", type=Path, required=True, help="folder to write; must not exist")
            command.add_argument("--dtype", choices=("keep", "fp32", "bf16", "fp16"), default="keep")
            command.add_argument(
                "--workers", type=int, default=1, help="number of processes; each holds one tensor in memory"
            )
            command.add_argument(
                "--compare-logits", action="store_true", help="run both models on a short sequence, in memory"
            )
        if name == "plan":
            _add_plan_arguments(command)
        command.add_argument("overrides", nargs="*", metavar="section.key=value")
    _add_from_megatron(commands)
    return top


def _add_from_megatron(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    text = "write a configuration from the arguments of an existing Megatron-LM setup"
    command = commands.add_parser("from-megatron", help=text, description=text)
    source = command.add_mutually_exclusive_group(required=True)
    source.add_argument("--args", metavar="TEXT", help='the arguments as one string: --args="--lr 1e-6 ..."')
    source.add_argument(
        "--args-file", type=Path, metavar="FILE", help="a shell script (read, not run) or a YAML file"
    )
    command.add_argument("--model", type=Path, required=True, help="HF checkpoint of the model: model.path")
    command.add_argument("-o", "--output", type=Path, required=True, help="TOML file to write")
    command.add_argument(
        "--skip-refused", action="store_true", help="leave out arguments that are refused instead of stopping"
    )
    command.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings to add")


def _add_plan_arguments(command: argparse.ArgumentParser) -> None:
    """Add the arguments of `plan` besides the configuration."""
    command.add_argument("--gpu", default="H100-80G", help="H100-80G, H200, A100-80G, A100-40G, B200")
    command.add_argument("--gpus", type=int, help="GPUs to train on; default parallel.num_processes")
    command.add_argument(
        "--gpu-set", action="append", default=[], metavar="FIGURE=VALUE", help="change a property of the GPU"
    )
    for name, text in (
        ("prompt-tokens", "mean length of a prompt; default half of the longest"),
        ("response-tokens", "mean length of a response; default half of the longest"),
        ("mfu", "fraction of the peak FLOPs that training reaches; default 0.4"),
        ("decode-efficiency", "fraction of the memory bandwidth that decoding reaches; default 0.6"),
        ("overhead-gib", "memory of a process outside of models, in GiB; default 3"),
    ):
        command.add_argument(f"--{name}", type=float, help=text)
    command.add_argument("--json", help="write the plan to this file too")
