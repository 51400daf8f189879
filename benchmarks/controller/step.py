"""One training step of a rank whose models cost nothing; a script that prints its measurements as JSON."""

import argparse
import contextlib
import gc
import json
import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from megatron.core.enums import ModelType
from megatron.core.transformer.transformer_config import TransformerConfig

from benchmarks.controller.meter import Meter, resident_bytes
from megatron_prime.algorithm.registry import PRM_OBJECTIVES
from megatron_prime.config.run import PrimeConfig
from megatron_prime.config.tables.filter import FilterConfig
from megatron_prime.config.tables.observability.rollout_log import RolloutLogConfig
from megatron_prime.engines.conversation import Conversation, SampledTurn
from megatron_prime.models.forward import PackedPass, ScoringSettings, this_ranks_microbatches
from megatron_prime.models.packing import RowCosts
from megatron_prime.observability import heartbeat
from megatron_prime.observability.metrics import peak_resident_bytes
from megatron_prime.observability.rollout_log import FileInfo
from megatron_prime.observability.rollout_log.folder import RolloutLog
from megatron_prime.parallel import cpu_shim
from megatron_prime.parallel.platform import Platform
from megatron_prime.parallel.topology import Topology, build_topology
from megatron_prime.rehearsal.groups import RehearsedGroup, join_alone
from megatron_prime.rollout.collector import BatchSize, Collector
from megatron_prime.rollout.sampled_groups import KEPT, SampledGroup
from megatron_prime.training.health.format_tokens import FormatTokens
from megatron_prime.training.minibatches import minibatches
from megatron_prime.training.prm_phase import PRMPhase
from megatron_prime.training.residency import Part, Residency
from megatron_prime.training.rollout_recorder import RolloutRecorder
from megatron_prime.training.step_details import StepDetails, chosen_tokens
from megatron_prime.training.trainable import Trainable
from megatron_prime.training.trainer import Trainer, TrainerContext, staleness
from megatron_prime.types import FinishReason, Prompt, Rollout, SamplingParams

GROUP_SIZE = 16
NUM_RANKS = 32
NUM_MINIBATCHES = 4
PROMPT_TOKENS = 512
VOCABULARY = 128_000
SIGMA = 0.745
"""Standard deviation of the logarithm of a length; benchmarks/overlap/lengths.py says where it is from."""
PHASES = ("rollout", "logprobs", "prm", "advantage", "policy", "describe")


def lengths(num: int, longest: int, rng: np.random.Generator) -> np.ndarray:
    """Return lengths with a median of a quarter of the longest; 3 % reach the limit."""
    drawn = longest / 4 * np.exp(SIGMA * rng.standard_normal(num))
    return np.clip(drawn.round(), 1, longest).astype(int)


def sampled_groups(num: int, longest: int, is_full: bool) -> Iterator[list[Rollout]]:
    """Yield groups of responses as an engine that got lists of numbers makes them, a third of the outcomes right."""
    rng = np.random.default_rng(0)
    params = SamplingParams(longest)
    all_lengths = np.full(num, longest) if is_full else lengths(num, longest, rng)
    for index in range(num // GROUP_SIZE):
        prompt = Prompt(index, tuple(rng.integers(VOCABULARY, size=PROMPT_TOKENS).tolist()), "42", "math")
        group = []
        for sample in range(GROUP_SIZE):
            length = int(all_lengths[index * GROUP_SIZE + sample])
            reason = FinishReason.LENGTH if length == longest else FinishReason.STOP
            conversation = Conversation(prompt, params)
            conversation.add_turn(
                SampledTurn(
                    rng.integers(VOCABULARY, size=length).tolist(),
                    (-rng.exponential(size=length)).astype(np.float32).tolist(),
                    reason,
                    ((0, 0, length),),
                )
            )
            conversation.end()
            group.append(conversation.rollout(sample, 0).with_outcome(float(sample % 3 == 0), "compared"))
        yield group


class Words:
    """Decodes a token as its number, and every tenth as a full stop."""

    def decode(self, token_ids: list[int], /, *, skip_special_tokens: bool) -> str:
        """Return the text."""
        return " ".join("." if token % 10 == 0 else str(token) for token in token_ids)


class ConstantModel(torch.nn.Module):
    """A last pipeline stage that gives each scored token a log-prob that depends on the token alone."""

    config: Any

    def __init__(self) -> None:
        super().__init__()
        self.config = TransformerConfig(num_layers=1, hidden_size=8, num_attention_heads=1)
        self.model_type = ModelType.encoder_or_decoder
        self.scale = torch.nn.Parameter(torch.ones(()))

    def set_input_tensor(self, _: object) -> None:
        """Take nothing from the stage before."""

    def forward(self, request: Any, **_: object) -> torch.Tensor:
        """Return log-probs and entropies, [2, R]."""
        logprobs_R = -(request.labels_R % 997).float() / 200
        return torch.stack([logprobs_R, -logprobs_R]) * self.scale


class ConstantRole(Trainable):
    """A role with the trainer's own packed pass through a model that computes nothing."""

    def __init__(self, name: str, topology: Topology, settings: ScoringSettings) -> None:
        self.role, self.topology = name, topology
        self._pass = PackedPass([ConstantModel()], topology, settings, RowCosts())
        self._has_gather_left = False
        parts: Any = dict.fromkeys(("weights", "gradients", "optimizer"), Part(lambda: iter(())))
        self.residency = Residency(topology.platform, parts, ())

    @property
    def lr(self) -> float:
        """The learning rate."""
        return 1e-6

    def advance_schedule(self) -> None:
        """Do nothing."""

    def update(self, *args: Any, **named: Any) -> Any:
        """Run the pass without an optimizer."""
        return self._pass.backward(*args, **named)


class Groups:
    """The engine, the source of the batches and the weight sync of the step: everything has been sampled."""

    policy_version = 0

    def __init__(self, collector: Collector, groups: list[list[Rollout]]) -> None:
        self._collector, self._groups = collector, groups

    def collect(self, step_index: int) -> Any:
        """Filter the groups one by one, as they come in, and return the batch."""
        return self._collector.batch_of(
            step_index, [(group, self._collector.decide(group)) for group in self._groups], {}
        )

    def __getattr__(self, name: str) -> Any:
        """Do nothing, in a method of any other name."""
        return lambda *_: None


def fill(outputs: Sequence[torch.Tensor], inputs: Sequence[torch.Tensor]) -> None:
    """Answer a collective: every other rank has what this one has."""
    for output, source in zip(outputs, list(inputs) * len(outputs), strict=False):
        whole = source.reshape(-1).repeat(-(-output.numel() // max(1, source.numel())))
        output.copy_(whole[: output.numel()].reshape(output.shape))


def join() -> Topology:
    """Return the layout of the first of NUM_RANKS data-parallel ranks, of which no other exists."""
    device = torch.device("cpu")
    cpu_shim.install(device)
    RehearsedGroup.fill = staticmethod(fill)
    RehearsedGroup.is_known = staticmethod(lambda tensor: tensor.numel() < 1 << 20)
    join_alone(0, NUM_RANKS)
    return build_topology(Platform(device, "gloo", torch.float32, timedelta(seconds=60)))


def num_minibatches_of(groups: list[list[Rollout]]) -> int:
    """Return the number of minibatches: one, where the groups cannot be divided."""
    return 1 if len(groups) % NUM_MINIBATCHES else NUM_MINIBATCHES


def collector_of(
    groups: list[list[Rollout]], longest: int, folder: Path
) -> tuple[Collector, RolloutRecorder]:
    """Return a collector that can do everything but sample, and the recorder that observes it."""
    nothing: Any = None
    size = BatchSize(len(groups), GROUP_SIZE)
    collector = Collector(nothing, nothing, nothing, SamplingParams(longest), FilterConfig(), size)
    recorder = RolloutRecorder(RolloutLogConfig(), RolloutLog(folder), Words(), FileInfo(0))
    collector.observe = recorder.observe
    return collector, recorder


def trainer_of(groups: list[list[Rollout]], longest: int, folder: Path) -> Trainer:
    """Return the trainer of the step, with all observers."""
    optimizer = {"num_minibatches": num_minibatches_of(groups)}
    config = PrimeConfig.model_validate(
        {
            "run_dir": folder,
            "model": {"path": folder},
            "data": {"train": ["train.jsonl"]},
            "rollout": {
                "group_size": GROUP_SIZE,
                "max_response_tokens": longest,
                "max_prompt_tokens": PROMPT_TOKENS,
            },
            "policy": optimizer,
            "prm": optimizer,
            "trainer": {
                "num_steps": 1,
                "prompts_per_step": len(groups),
                "max_tokens_per_microbatch": 2 * longest + PROMPT_TOKENS,
            },
        }
    )
    collector, recorder = collector_of(groups, longest, folder)
    source: Any = Groups(collector, groups)
    topology = join()
    settings = ScoringSettings(config.trainer.max_tokens_per_microbatch, 1024)
    PRM_OBJECTIVES.load(config.prm.loss)
    policy, prm, reference = (
        ConstantRole(name, topology, settings) for name in ("policy", "prm", "reference")
    )
    context = TrainerContext(
        engine=source,
        batches=source,
        policy=policy,
        prm_phase=PRMPhase(prm, config.prm, 0),
        reference=reference,
        weight_sync=source,
        observers=[recorder.note, StepDetails(Words(), 1, 0).note],
        format_tokens=FormatTokens(Words()),
    )
    return Trainer(config, context)


def measure(num: int, longest: int, is_full: bool, has_tensors: bool, folder: Path) -> dict[str, Any]:
    """Return the measurements of a step of `num` responses: of the host, and with `has_tensors` of the whole step."""
    base = resident_bytes()
    clock = Clock()
    groups = list(sampled_groups(num, longest, is_full))
    stages = {"engine": clock.take()}
    gc.collect()
    found: dict[str, Any] = {
        "responses": num,
        "is_full": is_full,
        "rollouts": resident_bytes() - base,
        "tokens": sum(len(rollout.response_ids) for group in groups for rollout in group),
        "stages": stages,
        "phases": {},
    }
    clock.take()
    # As the driver sends each group to all ranks, once it is sampled.
    found["sent"] = sum(len(pickle.dumps(group)) for group in groups)
    stages["pickled"] = clock.take()
    # The first time memory comes from the system, page by page; a run has taken it in an earlier step.
    peaks = [run_host_stages(groups, longest, folder, stages, step_index) for step_index in range(2)]
    found["peak"] = max(peaks) - base
    if has_tensors:
        trainer = trainer_of(groups, longest, folder)
        with Meter(max(num * longest // 16, 4096)) as meter, watched(meter.take) as found["phases"]:
            trainer.step()
            found["phases"]["describe"] = meter.take()
        found["at_peak"] = meter.at_peak
    return found


def run_host_stages(
    groups: list[list[Rollout]], longest: int, folder: Path, stages: dict[str, float], step_index: int
) -> int:
    """Call what the host calls in a step, one after another, and note the seconds; return the largest memory."""
    Path("/proc/self/clear_refs").write_text("5")
    formats = FormatTokens(Words())
    # Learned once a run.
    formats.mask([range(VOCABULARY)])
    collector, recorder = collector_of(groups, longest, folder)
    collector.decide(groups[0])
    clock = Clock()
    decided = [(group, collector.decide(group)) for group in groups]
    stages["filter"] = clock.take()
    batch: Any = collector.batch_of(step_index, decided, {})
    sequences = [(rollout.prompt.token_ids, rollout.response_ids) for rollout in batch.rollouts]
    stages["batch"] = clock.take()
    topology: Any = SimpleNamespace(
        context_size=1, data_size=NUM_RANKS, data_rank=0, tensor_size=1, pipeline_size=1, virtual_size=1
    )
    topology.sequence_parallel = False
    # Another limit in each step, so that no step finds its packings remembered.
    settings = ScoringSettings(2 * longest + PROMPT_TOKENS + step_index, 1024)
    num_minibatches = num_minibatches_of(groups)
    # Policy and reference score the batch, then PRM and policy are trained on the same minibatches.
    updates = [list(minibatches(batch.num_rows, num_minibatches, 1, 0, 0)) for _ in range(2)]
    for rows in [range(batch.num_rows)] * 2 + updates[0] + updates[1]:
        this_ranks_microbatches(sequences, rows, settings, RowCosts(), topology)
    stages["microbatches"] = clock.take()
    formats.mask([rollout.response_ids for rollout in batch.rollouts])
    stages["format tokens"] = clock.take()
    staleness(batch, step_index)
    chosen_tokens(batch.rollouts, np.random.default_rng(0))
    recorder.observe(step_index, [SampledGroup(group, KEPT, index) for index, group in enumerate(groups)])
    stages["records"] = clock.take()
    return peak_resident_bytes()


class Clock:
    """The processor time of this process."""

    def __init__(self) -> None:
        self._last = time.process_time()

    def take(self) -> float:
        """Return the seconds since the last call."""
        before, self._last = self._last, time.process_time()
        return self._last - before


@contextlib.contextmanager
def watched(take: Callable[[], dict[str, float]]) -> Iterator[dict[str, dict[str, float]]]:
    """Have values taken at the end of each phase of the trainer."""
    original, phases = heartbeat.phase, {}

    @contextlib.contextmanager
    def phase(name: str, *args: Any, **named: Any) -> Iterator[None]:
        with original(name, *args, **named):
            yield
        if name in PHASES:
            phases[name] = take()

    heartbeat.phase = phase
    try:
        yield phases
    finally:
        heartbeat.phase = original


def main() -> None:
    """Measure a step and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("responses", type=int)
    parser.add_argument("longest", type=int)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--full", action="store_true", help="all responses have the longest length")
    parser.add_argument("--tensors", action="store_true", help="measure the whole step too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = measure(options.responses, options.longest, options.full, options.tensors, options.folder)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
