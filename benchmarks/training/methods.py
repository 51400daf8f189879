"""The methods that the comparison runs, in real processes over gloo.

As a script it is one rank (torch's variables in the environment); `measure` starts the ranks.
"""

import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gloo_ranks import run_ranks

SIZES = {
    "vocab_size": 8192,
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}
"""Sizes of a Qwen3 model with 13M parameters."""
LAYOUTS = {1: ("one",), 2: ("dp2", "tp2")}
NUM_ROWS, PADDED_ROWS = 24, 8
MAX_TOKENS = 4096
TIMEOUT_S = 1200.0


def rows() -> list[tuple[list[int], list[int]]]:
    """Return prompts of 20 to 60 tokens with log-normal responses of 8 to 400 tokens."""
    rng = random.Random(0)

    def draw(num_tokens: int) -> list[int]:
        return [rng.randrange(SIZES["vocab_size"]) for _ in range(num_tokens)]

    return [
        (draw(rng.randint(20, 60)), draw(min(400, max(8, int(rng.lognormvariate(4.6, 0.7))))))
        for _ in range(NUM_ROWS)
    ]


def measure(num_processes: int, repeats: int) -> dict[str, Any]:
    """Return the median seconds of every method with a number of processes."""
    with tempfile.TemporaryDirectory() as folder:
        run_ranks("benchmarks.training.methods", [folder, str(repeats)], num_processes, TIMEOUT_S)
        return json.loads(Path(folder, "result.json").read_text())


def rank_main(folder: Path, repeats: int) -> None:
    """Check that the methods agree, then time them alternately; rank 0 writes the result."""
    import torch.distributed as dist

    from megatron_prime.parallel.platform import select_platform

    platform = select_platform("cpu")
    platform.start_process_group()
    model = _hf_model(folder)
    sequences = rows()
    methods = {
        "HF, one sequence at a time": HuggingFace(model, sequences, 1),
        f"HF, padded in {PADDED_ROWS}s": HuggingFace(model, sequences, PADDED_ROWS),
        **{
            f"ours, {layout}": Ours(folder, platform, layout, sequences)
            for layout in LAYOUTS[dist.get_world_size()]
        },
    }
    losses = {}
    for name, method in methods.items():
        method.prepare()
        losses[name] = method.train()
    # Equal losses show that the methods do the same work.
    reference = next(iter(losses.values()))
    assert all(abs(loss - reference) < 1e-4 * abs(reference) for loss in losses.values()), losses
    times: dict[str, dict[str, list[float]]] = {name: {"score": [], "train": []} for name in methods}
    parts: dict[str, list[dict[str, float]]] = {}
    for _ in range(repeats):
        for name, method in methods.items():
            method.prepare()
            for kind, work in (("score", method.score), ("train", method.train)):
                times[name][kind].append(_timed(work))
                parts.setdefault(f"{name}, {kind}", []).append(_parts_of(work))
    if dist.get_rank() == 0:
        lengths = [len(prompt) + len(response) for prompt, response in sequences]
        result = {
            "num_rows": len(sequences),
            "tokens": sum(lengths),
            "padded_tokens": sum(
                len(part) * max(lengths[i] for i in part) for part in _parts(range(NUM_ROWS), 8)
            ),
            "methods": {
                name: {kind: statistics.median(values) for kind, values in by_kind.items()}
                for name, by_kind in times.items()
            },
            # The lowest values, since other work on the machine only adds to them.
            "parts": {
                name: {key: min(row[key] for row in rows) for key in rows[0]} for name, rows in parts.items()
            },
        }
        (folder / "result.json").write_text(json.dumps(result))
    dist.barrier()
    dist.destroy_process_group()


class Ours:
    """This project: packed sequences through Megatron's schedule, without the optimizer step."""

    def __init__(self, folder: Path, platform: Any, layout: str, sequences: Sequence[Any]) -> None:
        from megatron_prime.config.tables.policy import PolicyConfig
        from megatron_prime.models.forward import ScoringSettings
        from megatron_prime.parallel.topology import build_topology
        from megatron_prime.training.trainable import RoleSpec, Trainable

        self._tensor = 2 if layout == "tp2" else 1
        self._build = lambda: build_topology(platform, self._tensor)
        settings = ScoringSettings(max_tokens_per_microbatch=MAX_TOKENS, chunk_tokens=1024)
        spec = RoleSpec("policy", folder / "model", settings)
        self._model = Trainable(spec, self._build(), PolicyConfig(), 10)
        self._sequences = sequences

    def prepare(self) -> None:
        """Activate the layout: several layouts alternate in one process, and Megatron's groups are global."""
        self._build()

    def score(self) -> None:
        """Compute log-probs and entropies of all responses."""
        self._model.score(self._sequences)

    def train(self) -> float:
        """Compute gradients, summed over the ranks; return the loss."""

        def loss(rows_b, logprobs_bT, entropy_bT):
            value = -(logprobs_bT.sum() + 0.01 * entropy_bT.sum()) / 1000
            return value, {"loss": value}

        for chunk in self._model._ddp:
            chunk.zero_grad_buffer()
        _, metrics = self._model._pass.backward(self._sequences, range(len(self._sequences)), loss)
        return metrics["loss"]


class HuggingFace:
    """The transformers model with sdpa; several processes split the rows and sum their gradients.

    Both variants score responses only, as this project does. With one sequence at a time the output layer runs on the
    positions of the response; with a padded batch it runs on every position, because `logits_to_keep` cannot select
    different positions per row.
    """

    def __init__(self, model: Any, sequences: Sequence[Any], rows_at_once: int) -> None:
        import torch.distributed as dist

        self._model = model
        size, rank = dist.get_world_size(), dist.get_rank()
        # Sorting by length and assigning rows round-robin gives even shares and little padding within a batch.
        order = sorted(sequences, key=lambda row: -len(row[0]) - len(row[1]))[rank::size]
        self._batches = [list(part) for part in _parts(order, rows_at_once)]

    def prepare(self) -> None:
        """Do nothing: the model has only one layout."""

    def score(self) -> None:
        """Compute log-probs and entropies of this rank's responses."""
        import torch

        with torch.no_grad():
            for batch in self._batches:
                self._logprobs_and_entropy(batch)

    def train(self) -> float:
        """Compute gradients, summed over the ranks; return the loss."""
        import torch
        import torch.distributed as dist

        self._model.zero_grad()
        total = torch.zeros(())
        for batch in self._batches:
            logprobs, entropy = self._logprobs_and_entropy(batch)
            loss = -(logprobs.sum() + 0.01 * entropy.sum()) / 1000
            loss.backward()
            total += loss.detach()
        if dist.get_world_size() > 1:
            # One all-reduce of all gradients is what a data-parallel HF run would do at best.
            flat = torch.cat([parameter.grad.flatten() for parameter in self._model.parameters()])
            dist.all_reduce(flat)
            dist.all_reduce(total)
        return total.item()

    def _logprobs_and_entropy(self, batch: list[Any]) -> tuple[Any, Any]:
        import torch

        if len(batch) == 1:
            (prompt, response) = batch[0]
            keep = torch.arange(len(prompt) - 1, len(prompt) + len(response) - 1)
            logits = self._model(torch.tensor([prompt + response]), logits_to_keep=keep).logits[0]
            labels = torch.tensor(response)
        else:
            longest = max(len(prompt) + len(response) for prompt, response in batch)
            ids, mask = (torch.zeros(len(batch), longest, dtype=torch.int64) for _ in range(2))
            picked = torch.zeros(len(batch), longest, dtype=torch.bool)
            for row, (prompt, response) in enumerate(batch):
                length = len(prompt) + len(response)
                ids[row, :length] = torch.tensor(prompt + response)
                mask[row, :length] = 1
                picked[row, len(prompt) - 1 : length - 1] = True
            logits = self._model(ids, attention_mask=mask).logits[picked]
            labels = torch.cat([torch.tensor(response) for _, response in batch])
        full = torch.log_softmax(logits, dim=-1)
        return full.gather(1, labels[:, None])[:, 0], -(full.exp() * full).sum(dim=-1)


def _hf_model(folder: Path) -> Any:
    """Build a model with the same random weights on every rank; rank 0 saves it."""
    import torch
    import torch.distributed as dist
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    model = Qwen3ForCausalLM._from_config(Qwen3Config(**SIZES), attn_implementation="sdpa").float()
    if dist.get_rank() == 0:
        model.save_pretrained(folder / "model")
    dist.barrier()
    return model


def _parts(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _parts_of(function: Callable[[], Any]) -> dict[str, float]:
    """Return what the calling thread computes, and what the collectives take by themselves."""
    from benchmarks.training.collectives import num_bytes, recorded, repeated

    with recorded() as calls:
        start = time.thread_time()
        function()
        computing = time.thread_time() - start
    seconds, cpu = repeated(calls)
    return {
        "computing_cpu_s": computing,
        "collectives_s": seconds,
        "collectives_cpu_s": cpu,
        "num_collectives": len(calls),
        "mb": num_bytes(calls) / 1e6,
    }


def _timed(function: Callable[[], Any]) -> float:
    import torch.distributed as dist

    dist.barrier()
    start = time.perf_counter()
    function()
    dist.barrier()
    return time.perf_counter() - start


if __name__ == "__main__":
    rank_main(Path(sys.argv[1]), int(sys.argv[2]))
