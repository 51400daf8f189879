"""Measure the cost of the rollout log: `python -m benchmarks.rollout_log`, half a minute.

The default log of a step (8 groups) is taken from a batch and written, with a byte-level tokenizer of 4,000 merges and
responses of mathematical prose. It is the time of the whole file, which a thread of rank 0 writes while the next step
samples: training waits for it only if that takes less time than the file.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from megatron_prime.config.tables.observability.rollout_log import RolloutLogConfig
from megatron_prime.models.forward import Scores
from megatron_prime.observability.rollout_log import FileInfo, logged_steps
from megatron_prime.observability.rollout_log.folder import RolloutLog
from megatron_prime.rollout.sampled_groups import SampledGroup
from megatron_prime.training.rollout_recorder import RolloutRecorder
from megatron_prime.training.trainer import TrainedBatch
from megatron_prime.types import FinishReason, Prompt, Rollout, RolloutBatch

CASES = ((4, 512), (8, 2048), (16, 4096))
"""Responses per group and tokens per response."""
NUM_GROUPS = 16
"""Groups of the batch; the log takes 8 of them."""
NUM_REPEATS = 5


def tokenizer_of(texts: list[str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=4000, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


def batch_of(group_size: int, num_tokens: int, ids: list[int]) -> tuple[list[SampledGroup], RolloutBatch]:
    groups = []
    for index in range(NUM_GROUPS):
        prompt = Prompt(index, tuple(ids[index : index + 200]), "42", "math")
        rollouts = []
        for sample in range(group_size):
            start = (index * 131 + sample * 17) % len(ids)
            tokens = tuple((ids[start:] + ids * (num_tokens // len(ids) + 1))[:num_tokens])
            logprobs = tuple((-torch.rand(num_tokens).exp()).tolist())
            rollout = Rollout(prompt, sample, tokens, logprobs, FinishReason.STOP, 3, float(sample % 2))
            rollouts.append(rollout)
        groups.append(SampledGroup(rollouts, "kept", index))
    flat = [rollout for group in groups for rollout in group.rollouts]
    return groups, RolloutBatch.from_rollouts(flat, [row // group_size for row in range(len(flat))])


def trained_on(batch: RolloutBatch) -> TrainedBatch:
    scores = Scores(*torch.rand(2, *batch.response_mask_BT.shape))
    return TrainedBatch(batch, scores, *torch.rand(4, *batch.response_mask_BT.shape))


def seconds(group_size: int, num_tokens: int, text: str, folder: Path) -> tuple[list[float], float]:
    """Return the times of all repeats after a first one, and the MiB of a file."""
    tokenizer = tokenizer_of([text])
    groups, batch = batch_of(group_size, num_tokens, tokenizer.encode(text))
    trained = trained_on(batch)
    recorder = RolloutRecorder(RolloutLogConfig(), RolloutLog(folder), tokenizer, FileInfo(0))
    times = []
    for step_index in range(NUM_REPEATS + 1):
        start = time.perf_counter()
        recorder.observe(step_index, groups)
        recorder.note(step_index + 1, trained)
        recorder.write()
        recorder.finish()
        times.append(time.perf_counter() - start)
    return times[1:], logged_steps(folder)[1].stat().st_size / (1 << 20)


def main() -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in sorted(Path("docs").glob("*.md")))
    text += " Let $x = 3 ∈ R$. 因此 x² ≥ 0. 🙂" * 200
    print("| responses x tokens | time, median (range) | size | longest step in which it is over 2 % |")
    print("|---|---|---|---|")
    for group_size, num_tokens in CASES:
        with tempfile.TemporaryDirectory() as folder:
            times, mib = seconds(group_size, num_tokens, text, Path(folder))
        middle = statistics.median(times)
        print(
            f"| 8 x {group_size} x {num_tokens} | {middle:.3f} s ({min(times):.3f} to {max(times):.3f}) | "
            f"{mib:.1f} MiB | {middle / 0.02:.0f} s |",
            flush=True,
        )


if __name__ == "__main__":
    sys.exit(main())
