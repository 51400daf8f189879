"""Functions that the ranks of the end-to-end tests run: several commands per process, to pay for imports once."""

import atexit
import contextlib
import io
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from megatron_prime.rollout.episode import Reply
from tests.support.episodes import ScriptedEnvironments

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(*arguments: str) -> tuple[int, str]:
    """Run `megatron-prime ARGUMENTS` in this process, a rank of a job; return exit code and output."""
    from megatron_prime.cli import main

    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        code = main(arguments)
    return code, output.getvalue()


def prepare(folder: str) -> dict[str, Any]:
    """Create the task, warm up a model, run in one process, and evaluate the initial and final models."""
    from megatron_prime.quickstart.arithmetic_task import write_all

    os.chdir(folder)
    write_all(Path("task"), seed=0)
    for name, num_rows in (("train", 256), ("heldout", 64)):
        path = Path("task", f"{name}.jsonl")
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:num_rows]))
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    problems = [{"problem": row["prompt"], "answer": row["answer"]} for row in rows]
    Path("task/benchmark.jsonl").write_text("".join(json.dumps(problem) + "\n" for problem in problems))
    write_probe(Path("task/probe.jsonl"), rows[:24])
    facts: dict[str, Any] = {
        "sft": run(
            "sft",
            "run.toml",
            "model.path=task/model",
            "run_dir=sft_run",
            "checkpoint.save_every=auto",
            "trainer.max_tokens_per_microbatch=4096",
        ),
        "train": run("train", "run.toml", "run_dir=single", "profile.steps=[2]"),
        "again": run("train", "run.toml", "run_dir=single", "profile.steps=[2]"),
        "eval start": run("eval", "run.toml", "run_dir=eval_start"),
        "eval end": run("eval", "run.toml", "run_dir=eval_end", "model.path=single/hf"),
    }
    failed = {name: output for name, (code, output) in facts.items() if code}
    assert not failed, failed
    facts["replay"] = run("train", "run.toml", "run_dir=replayed", "--replay-rollouts", "single")
    facts["rollout"] = run("rollout", "run.toml", "run_dir=sampled")
    facts["never"] = run("train", "run.toml", "run_dir=single", "checkpoint.resume=never")
    facts["parts"] = parts_of()
    return facts


def write_probe(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    """Write the solutions of problems in ProcessBench's format; every second one goes wrong in one step."""
    from megatron_prime.quickstart.arithmetic import evaluate

    solutions = []
    for number, row in enumerate(rows):
        first, *rest = row["prompt"].removesuffix("=").split()
        value, steps = int(first), []
        label = number % (len(rest) // 2) if number % 2 else -1
        for step, (operator, operand) in enumerate(zip(rest[::2], rest[1::2], strict=True)):
            value = (evaluate(value, operator, int(operand)) + (step == label)) % 10
            steps.append(str(value))
        solutions.append({"problem": row["prompt"], "steps": steps, "label": label, "separator": " "})
    path.write_text("".join(json.dumps(solution) + "\n" for solution in solutions))


def train_layouts(folder: str, layouts: Mapping[str, Sequence[str]]) -> dict[str, list[float]]:
    """Run without interruption in each layout, in a folder of its name; return the results of `sft_steps`."""
    os.chdir(folder)
    for layout, overrides in layouts.items():
        code, output = run("train", "run.toml", f"run_dir={layout}", *overrides)
        assert code == 0, output
    return sft_steps(num_steps=3)


def sft_runs(folder: str) -> dict[str, Any]:
    """Run SFT without interruption, and stop and resume the same run; return the results and a held-out loss by HF."""
    os.chdir(folder)
    settings = [
        "model.path=task/model",
        "sft.num_steps=16",
        "sft.batch_size=8",
        'sft.evaluation=["task/sft_heldout.jsonl"]',
        "sft.eval_every=8",
        "checkpoint.save_every=6",
    ]
    rows = Path("task/sft.jsonl").read_text().splitlines(keepends=True)
    Path("task/sft_heldout.jsonl").write_text("".join(rows[:20]))
    whole = run("sft", "run.toml", *settings, "run_dir=sft_whole", "sft.output=sft_whole/hf")
    parts = [*settings, "run_dir=sft_parts", "sft.output=sft_parts/hf"]
    stopper = threading.Thread(target=terminate_when_logged, args=(Path("sft_parts/sft_log/metrics.jsonl"),))
    stopper.start()
    stopped = run("sft", "run.toml", *parts)
    stopper.join()
    return {
        "whole": whole,
        "stopped": stopped,
        "another model": run("sft", "run.toml", *parts, "model.path=sft"),
        "resumed": run("sft", "run.toml", *parts),
        "finished": run("sft", "run.toml", *parts),
        "hf loss": _hf_loss("sft_whole/hf", "task/sft_heldout.jsonl"),
    }


def outage_runs(folder: str) -> dict[str, Any]:
    """Run with a reward server that goes away three times; return the result of each attempt and of two more."""
    from megatron_prime.observability.heartbeat import current
    from tests.support.reward_server import RewardServer

    os.chdir(folder)

    def in_evaluation(step: int) -> bool:
        return (current().step, current().phase) == (step, "evaluation")

    moments: dict[str, Callable[[], bool]] = {
        "evaluation of step 2": lambda: in_evaluation(2),
        "step 4": lambda: current().step == 4,
        "evaluation of step 4": lambda: in_evaluation(4),
        "back": lambda: False,
    }
    results: dict[str, Any] = {}
    port = 0
    for name, goes_away in moments.items():
        with RewardServer(port, goes_away) as server:
            port = server.port
            settings = [f"reward.verifier={server.url}", "reward.http.max_outage_s=0.5"]
            settings.append("rollout_log.groups_per_step=0")
            results[name] = run("train", "run.toml", "run_dir=outages", *settings)
    results["finished"] = run("train", "run.toml", "run_dir=outages", *settings)
    return results


def terminate_when_logged(path: Path) -> None:
    """Send SIGTERM to this process when the metrics of step 3 are in the file."""
    while not (path.exists() and '"step": 3,' in path.read_text()):
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGTERM)


def _hf_loss(model: str, file: str) -> float:
    """Return the mean loss of Hugging Face's model over all response tokens of a file, in nats."""
    import torch
    from transformers import AutoModelForCausalLM

    from megatron_prime.config.loading import load_config
    from megatron_prime.data.sft import SFTDataset
    from megatron_prime.data.tokenizer import load_tokenizer

    config = load_config(Path("run.toml"), [])
    dataset = SFTDataset.read([Path(file)], config.data, "response", load_tokenizer(Path(model)), 256)
    hf, total, num_tokens = AutoModelForCausalLM.from_pretrained(model), 0.0, 0
    for example in dataset.examples:
        tokens = torch.tensor([*example.prompt_ids, *example.response_ids])
        with torch.no_grad():
            logprobs = hf(input_ids=tokens[None]).logits[0, :-1].double().log_softmax(-1)
        responses = logprobs.gather(1, tokens[1:, None])[len(example.prompt_ids) - 1 :]
        total, num_tokens = total - responses.sum().item(), num_tokens + len(responses)
    return total / num_tokens


def convert_roles(folder: str, run_dir: str) -> dict[str, tuple[int, str]]:
    """Convert policy and PRM of a run's newest checkpoint, and an older policy, to HF; return rejections too."""
    os.chdir(folder)
    older = str(Path(run_dir, "checkpoints", "step_00000002"))
    commands = {
        "policy": ["--output", "converted/policy"],
        "prm": ["--role", "prm", "--output", "converted/prm"],
        "older": ["--checkpoint", older, "--output", "converted/older"],
        "damaged": ["--checkpoint", "damaged", "--output", "converted/damaged"],
    }
    shutil.copytree(older, "damaged")
    next(Path("damaged/policy").glob("*.distcp")).open("ab").write(b"more")
    return {
        name: run("convert", "run.toml", f"run_dir={run_dir}", *arguments)
        for name, arguments in commands.items()
    }


def parts_of() -> dict[str, Any]:
    """Return the parts that cli.assemble and cli.evaluator build from the toy configuration."""
    from megatron_prime.cli.assemble import build_rollout, start_topology
    from megatron_prime.config.loading import load_config
    from megatron_prime.evaluation.evaluator import Evaluator, evaluation_sets
    from megatron_prime.parallel.platform import num_gpus
    from megatron_prime.training.roles import scoring_settings

    config = load_config(Path("run.toml"), ["evaluation.temperature=1.0", "evaluation.max_prompts=5"])
    refused = ""
    if not num_gpus():
        try:
            overrides = ["platform.device=auto", "trainer.logprob_kernel=triton"]
            start_topology(load_config(Path("run.toml"), overrides))
        except ValueError as error:
            refused = str(error)
    topology = start_topology(config)
    rollout = build_rollout(config, topology)
    try:
        rollout.engine.load_from_hf(config.model.path)
        evaluator = Evaluator(config, evaluation_sets(config), rollout.engine, rollout.verifier)
        reports = [evaluator(step_index) for step_index in (0, 0, 1)]
    finally:
        rollout.close()
    results = [report.results[""] for report in reports]
    benchmark = reports[0].results["toy"]
    return {
        "benchmark": (benchmark.num_prompts, benchmark.samples_per_prompt, benchmark.rollouts[0].prompt),
        "benchmark responses": [
            [rollout.response_ids for rollout in report.results["toy"].rollouts] for report in reports
        ],
        "sampling": rollout.sampling,
        "settings": scoring_settings(config, 0.5),
        "refused kernel": refused,
        "responses": [[rollout.response_ids for rollout in result.rollouts] for result in results],
        "outcomes": [
            (rollout.prompt.answer, rollout.response_ids, rollout.outcome_reward)
            for rollout in results[0].rollouts
        ],
        "num_prompts": results[0].num_prompts,
    }


def one_step_each(
    folder: str, variants: Mapping[str, Sequence[str]]
) -> tuple[dict[str, dict[str, float] | str], dict[str, Any]]:
    """Return the metrics of the first step under each set of overrides (or the error message), and advantages.

    Where a name begins with "turns", an environment answers the first turn and judges the second.
    """
    os.chdir(folder)
    results: dict[str, dict[str, float] | str] = {}
    for name, overrides in variants.items():
        try:
            results[name] = _first_step(["evaluation.max_prompts=1", *overrides], name.startswith("turns"))
        except (ValueError, RuntimeError, FloatingPointError, AssertionError, TypeError) as error:
            results[name] = f"{type(error).__name__}: {error}"
    return results, outcome_only_advantages()


def _remark(episode: Any) -> Reply:
    """Reply with two tokens and a reward; call a second turn right by the tokens of both."""
    if len(episode.seen) == 1:
        return Reply((5, 6), reward=0.25)
    return Reply(is_done=True, outcome=float(sum(sum(token_ids) for token_ids, _ in episode.seen) % 2))


def stale_step(folder: str) -> dict[str, Any]:
    """Run a step whose policy and PRM changed after the last sync.

    Returns its metrics, the engine's calls, the gap of the log-probs, those of the policy's tokens by response, and the
    largest difference between the log-probs behind the process rewards and those of the PRM that trains.
    """
    import torch

    os.chdir(folder)
    trained, prm_scores = [], []
    with _trainer(["trainer.prompts_per_step=4", "policy.correction=token"]) as (trainer, collector):
        context, scored, calls = trainer._context, [], []
        context.__dict__["observers"] = [lambda step, batch: trained.append(batch)]
        score, prm = context.policy.score, context.prm_phase.prm

        def watched_score(sequences: Any, routing: Any = None) -> Any:
            calls.append("score")
            scored.append((sequences, score(sequences, routing)))
            prm_scores.append(prm.score(sequences).logprobs_BT)
            return scored[-1][1]

        context.policy.score = watched_score
        context.engine.__dict__ |= {
            name: partial(_watched, calls, name, getattr(context.engine, name))
            for name in ("stream", "release_memory")
        }
        context.weight_sync.__dict__["push"] = partial(_watched, calls, "push", context.weight_sync.push)
        collected: list[Any] = []
        collect = collector.collect
        collector.collect = lambda step: collected.append(collect(step)) or collected[0]
        with torch.no_grad():
            for role in (context.policy, prm):
                for parameter in role.built.module.parameters():
                    parameter.mul_(1.5)
        metrics = dict(trainer.step())
        for _ in range(2):
            trainer.sync_weights()
        batch, mask = collected[0], collected[0].response_mask_BT
        gap = (scored[0][1].logprobs_BT - batch.rollout_logprobs_BT).double()
        total = sum(abs(value) for value in gap[mask].tolist())
        for name in ("stream", "release_memory"):
            del context.engine.__dict__[name]
    return {
        "metrics": metrics,
        "calls": calls,
        "expected_mean": total / int(mask.sum()),
        "gaps": [row[used].tolist() for row, used in zip(gap, mask, strict=True)],
        "prm_difference": float((trained[0].prm_logprobs_BT - prm_scores[0])[mask].abs().max()),
    }


def _watched(calls: list[str], name: str, call: Any, *arguments: Any) -> Any:
    calls.append(name)
    return call(*arguments)


def outcome_only_advantages() -> dict[str, Any]:
    """Return the outcomes, groups and advantages of a batch of a trainer without a PRM."""
    from megatron_prime.observability.metrics import Metrics

    with _trainer(["prm.enabled=false", "advantage.whitening=none"]) as (trainer, collector):
        batch = collector.collect(0)
        advantages_BT = trainer._advantages(batch, None, Metrics())
    return {
        "outcomes": batch.outcome_rewards_B.tolist(),
        "groups": batch.group_ids_B.tolist(),
        "mask": batch.response_mask_BT.tolist(),
        "advantages": advantages_BT.tolist(),
    }


def _first_step(overrides: Sequence[str], has_turns: bool) -> dict[str, float]:
    from megatron_prime.training.health.alarms import Alarms

    with _trainer(overrides) as (trainer, collector):
        if has_turns:
            collector.environments = ScriptedEnvironments(_remark)
        metrics = dict(trainer.step())
        _, warnings = Alarms(trainer.config.guards).look(metrics)
        assert not warnings, warnings
        return metrics


@contextlib.contextmanager
def _trainer(overrides: Sequence[str]):
    """Yield a trainer as `train` builds it, with its collector."""
    from megatron_prime.cli import train
    from megatron_prime.config.loading import load_config
    from megatron_prime.observability import Progress
    from megatron_prime.training.roles import build_roles
    from megatron_prime.training.trainer import Trainer

    config = load_config(Path("run.toml"), overrides)
    topology, rollout = _rollout_parts(config)
    progress = Progress(enabled=False)
    roles = build_roles(config, topology, load_weights=True)
    stream = train.prompt_stream(config, progress, None)
    sync = rollout.sampler.make_weight_sync(roles.policy.built)
    sync.push(0)
    context = train._trainer_context(config, roles, stream, sync, rollout, progress)
    yield Trainer(config, context), context.batches.collector


_ROLLOUT_PARTS: dict[str, Any] = {}


def _rollout_parts(config: Any) -> Any:
    """Return layout, engine and verifier processes, built once for all variants with the same sampling."""
    from megatron_prime.cli.assemble import build_rollout, start_topology

    key = f"{config.platform} {config.rollout}"
    if key not in _ROLLOUT_PARTS:
        topology = start_topology(config)
        _ROLLOUT_PARTS[key] = topology, build_rollout(config, topology)
        atexit.register(_ROLLOUT_PARTS[key][1].close)
    return _ROLLOUT_PARTS[key]


def sft_steps(num_steps: int) -> dict[str, list[float]]:
    """Run SFTTrainer over the data-parallel ranks, and the same steps with AdamW on the plain HF model."""
    import torch
    from transformers import AutoModelForCausalLM

    from megatron_prime.cli.assemble import start_topology
    from megatron_prime.config.loading import load_config
    from megatron_prime.data.sft import SFTDataset
    from megatron_prime.data.tokenizer import load_tokenizer
    from megatron_prime.training.roles import role_spec
    from megatron_prime.training.sft import SFTTrainer
    from megatron_prime.training.trainable import Trainable

    overrides = [
        f"sft.num_steps={num_steps}",
        "sft.batch_size=6",
        "sft.lr_warmup_steps=2",
        "sft.weight_decay=0.1",
    ]
    config = load_config(Path("run.toml"), overrides)
    topology = start_topology(config)
    conversations = _conversations(config.sft.data[0], Path(f"conversations-{topology.rank}.jsonl"))
    data = config.data.model_copy(update={"chat_template": "never"})
    dataset = SFTDataset.read(
        [conversations], data, "response", load_tokenizer(config.model.path), 256, "messages"
    )
    spec = role_spec(config, "policy", config.model.path)
    policy = Trainable(spec, topology, config.sft, num_steps)
    history: dict[str, list[float]] = {name: [] for name in ("loss", "grad_norm", "lr", "num_tokens", "done")}

    def after_step(done: int, metrics: Mapping[str, float]) -> None:
        history["done"].append(done)
        for name in ("loss", "grad_norm", "lr", "num_tokens"):
            history[name].append(metrics[f"sft/{name}"])

    trainer = SFTTrainer(config.sft, policy, dataset.stream(0, config.data.shuffle))
    for _ in range(num_steps):
        metrics = trainer.step()
        after_step(trainer.step_index, metrics)

    model = AutoModelForCausalLM.from_pretrained(config.model.path)
    optimizer = torch.optim.AdamW(_decay_groups(model, 0.1), lr=0.0)
    stream = dataset.stream(0, config.data.shuffle)
    history |= {"hf_loss": [], "hf_grad_norm": []}
    for lr in history["lr"]:
        total, num_tokens = torch.zeros(()), 0
        for example in stream.next(6):
            tokens = torch.tensor([*example.prompt_ids, *example.response_ids])
            logprobs = model(input_ids=tokens[None]).logits[0, :-1].log_softmax(-1)
            # In the response: three values and the end of the turn, one word of the user, five values and the end.
            trained = [len(example.prompt_ids) + place for place in (0, 1, 2, 3, 5, 6, 7, 8, 9, 10)]
            assert trained[-1] + 1 == len(tokens)
            total = total - logprobs.gather(1, tokens[1:, None])[[place - 1 for place in trained]].sum()
            num_tokens += len(trained)
        loss = total / num_tokens
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        history["hf_loss"].append(loss.item())
        history["hf_grad_norm"].append(norm.item())
    return history


def _conversations(demonstrations: Path, output: Path) -> Path:
    """Write demonstrations as conversations of two turns, with a word of the user between them."""
    rows = []
    for line in demonstrations.read_text().splitlines():
        row = json.loads(line)
        words = row["response"].split()
        contents = [row["prompt"], " ".join(words[:3]), "+", " ".join(words[3:])]
        roles = ["user", "assistant"] * 2
        turns = [{"role": role, "content": text} for role, text in zip(roles, contents, strict=True)]
        rows.append(json.dumps({"messages": turns}) + "\n")
    output.write_text("".join(rows))
    return output


def _decay_groups(model: Any, weight_decay: float) -> list[dict[str, Any]]:
    """Return parameter groups as in Megatron, without weight decay on biases and norms."""
    parameters = list(model.parameters())
    return [
        {"params": [value for value in parameters if value.dim() > 1], "weight_decay": weight_decay},
        {"params": [value for value in parameters if value.dim() == 1], "weight_decay": 0.0},
    ]
