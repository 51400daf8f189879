"""Compare five methods for log-probs and entropy with a vocabulary of 152k: `python -m benchmarks.logprobs [--quick]`.

It measures memory, time and error. Each method runs forward and backward in a separate process, twice: once to measure
time and the memory seen by the operating system, once to count the bytes of live tensors. It takes a few minutes on one
core.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch.utils.checkpoint import checkpoint

from benchmarks.live_bytes import LiveBytes
from megatron_prime.logprobs.output_layer import VocabShard, output_logprobs
from megatron_prime.observability.metrics import peak_resident_bytes

Scores = tuple[torch.Tensor, torch.Tensor | None]
CHUNK_TOKENS = 1024


def naive(hidden_RH, weight_VH, labels_R) -> Scores:
    """Compute logits, log_softmax, gather and entropy with autograd."""
    full_RV = torch.log_softmax(hidden_RH @ weight_VH.T, dim=1)
    return full_RV.gather(1, labels_R[:, None])[:, 0], -(full_RV.exp() * full_RV).sum(dim=1)


def naive_logprobs_alone(hidden_RH, weight_VH, labels_R) -> Scores:
    """Compute logits and cross-entropy without an entropy: the minimum that autograd alone can do."""
    return -torch.nn.functional.cross_entropy(hidden_RH @ weight_VH.T, labels_R, reduction="none"), None


def recomputed_chunks(hidden_RH, weight_VH, labels_R) -> Scores:
    """Apply `naive` to one chunk of tokens at a time, with activation checkpointing."""
    parts = [
        checkpoint(naive, hidden_RH[chunk], weight_VH, labels_R[chunk], use_reentrant=False)
        for chunk in _chunks(len(labels_R))
    ]
    logprobs, entropies = zip(*parts, strict=True)
    return torch.cat(logprobs), torch.cat(entropies)


class _GradientInForward(torch.autograd.Function):
    """Sum of weighted log-probs whose gradients are computed during the forward pass, chunk by chunk."""

    @staticmethod
    def forward(ctx, hidden_RH, weight_VH, labels_R, weights_R):
        grad_hidden_RH, grad_weight_VH = torch.zeros_like(hidden_RH), torch.zeros_like(weight_VH)
        logprobs_R = hidden_RH.new_empty(len(labels_R))
        for chunk in _chunks(len(labels_R)):
            logits_CV = hidden_RH[chunk] @ weight_VH.T
            own_C = logits_CV.gather(1, labels_R[chunk, None])[:, 0]
            total_C = logits_CV.logsumexp(dim=1)
            logprobs_R[chunk] = own_C - total_C
            # The gradient of log softmax is onehot - softmax; it overwrites the logits.
            grad_CV = logits_CV.sub_(total_C[:, None]).exp_().neg_()
            grad_CV.scatter_add_(1, labels_R[chunk, None], torch.ones_like(own_C)[:, None])
            grad_CV.mul_(weights_R[chunk, None])
            grad_hidden_RH[chunk] = grad_CV @ weight_VH
            grad_weight_VH.addmm_(grad_CV.T, hidden_RH[chunk])
        ctx.save_for_backward(grad_hidden_RH, grad_weight_VH)
        ctx.mark_non_differentiable(logprobs_R)
        return (weights_R * logprobs_R).sum(), logprobs_R

    @staticmethod
    def backward(ctx, grad, _):
        grad_hidden_RH, grad_weight_VH = ctx.saved_tensors
        return grad_hidden_RH.mul_(grad), grad_weight_VH.mul_(grad), None, None


def ours(hidden_RH, weight_VH, labels_R) -> Scores:
    """Call the trainer's function."""
    shard = VocabShard(dist.group.WORLD, 0, len(weight_VH), hidden_is_gathered=False)
    return output_logprobs(hidden_RH, weight_VH, labels_R, shard, chunk_tokens=CHUNK_TOKENS)


METHODS: dict[str, Callable[..., Scores] | None] = {
    "naive": naive,
    "naive, no entropy": naive_logprobs_alone,
    "recomputed chunks": recomputed_chunks,
    "gradient in forward, no entropy": None,
    "ours": ours,
}


def _chunks(num_tokens: int) -> list[slice]:
    return [slice(start, start + CHUNK_TOKENS) for start in range(0, num_tokens, CHUNK_TOKENS)]


def inputs(num_tokens: int, vocab_size: int, hidden_size: int):
    """Return hidden states, output layer, labels, and the weight of each score in the loss [2, R]."""
    generator = torch.Generator().manual_seed(0)
    hidden_RH = torch.randn(num_tokens, hidden_size, generator=generator).requires_grad_()
    weight_VH = torch.randn(vocab_size, hidden_size, generator=generator).mul_(2 * hidden_size**-0.5)
    labels_R = torch.randint(0, vocab_size, (num_tokens,), generator=generator)
    return hidden_RH, weight_VH.requires_grad_(), labels_R, torch.randn(2, num_tokens, generator=generator)


def forward_and_backward(method: str, hidden_RH, weight_VH, labels_R, upstream_2R) -> Scores:
    """Return the scores of one method; the loss's gradients are in `hidden_RH.grad` and `weight_VH.grad`."""
    function = METHODS[method]
    if function is None:
        loss, logprobs_R = _GradientInForward.apply(hidden_RH, weight_VH, labels_R, upstream_2R[0])
        loss.backward()
        return logprobs_R.detach(), None
    logprobs_R, entropy_R = function(hidden_RH, weight_VH, labels_R)
    loss = (upstream_2R[0] * logprobs_R).sum()
    if entropy_R is not None:
        loss = loss + (upstream_2R[1] * entropy_R).sum()
    loss.backward()
    return logprobs_R.detach(), None if entropy_R is None else entropy_R.detach()


def count(method: str, num_tokens: int, vocab_size: int, hidden_size: int) -> LiveBytes:
    """Count the live bytes of one method beyond its inputs."""
    tensors = inputs(num_tokens, vocab_size, hidden_size)
    with LiveBytes(known=list(tensors)) as counted:
        forward_and_backward(method, *tensors)
    return counted


def errors(method: str, num_tokens: int, vocab_size: int, hidden_size: int) -> dict[str, float]:
    """Return the largest error of each result against float64, relative to its largest value."""
    tensors = inputs(num_tokens, vocab_size, hidden_size)
    exact = [
        tensor.detach().double().requires_grad_(tensor.requires_grad)
        if tensor.is_floating_point()
        else tensor
        for tensor in tensors
    ]
    has_entropy = "no entropy" not in method
    expected = forward_and_backward("naive" if has_entropy else "naive, no entropy", *exact)
    found = forward_and_backward(method, *tensors)
    pairs = {
        "logprobs": (found[0], expected[0]),
        "grad_hidden": (tensors[0].grad, exact[0].grad),
        "grad_weight": (tensors[1].grad, exact[1].grad),
    }
    if has_entropy:
        pairs["entropy"] = (found[1], expected[1])
    return {
        name: ((value.double() - oracle).abs().max() / oracle.abs().max()).item()
        for name, (value, oracle) in pairs.items()
    }


def run_method(method: str, sizes: tuple[int, int, int]) -> dict[str, float]:
    """Measure one method in this process, which must do nothing else."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    tensors = inputs(*sizes)
    before = peak_resident_bytes()
    start = time.perf_counter()
    forward_and_backward(method, *tensors)
    seconds = time.perf_counter() - start
    resident = peak_resident_bytes() - before
    del tensors
    gradients = 4 * sizes[2] * (sizes[0] + sizes[1])
    # Errors are measured at a smaller size, because float64 doubles the memory of the naive method.
    small = (256, sizes[1] // 8, sizes[2])
    return {
        "seconds": seconds,
        "resident": resident,
        "gradients": gradients,
        "counted": count(method, *sizes).peak,
        **_by_kind(errors(method, *small)),
    }


def _by_kind(found: dict[str, float]) -> dict[str, float]:
    return {
        "value_error": max(error for name, error in found.items() if "grad" not in name),
        "gradient_error": max(error for name, error in found.items() if "grad" in name),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="use a quarter of the tokens")
    parser.add_argument("--method", choices=METHODS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    sizes = (512 if options.quick else 2048, 151936, 256)
    if options.method:
        print(json.dumps(run_method(options.method, sizes)))
        return
    print("{} tokens, vocabulary {}, hidden size {}, fp32, one thread\n".format(*sizes))
    print(
        "| method | counted MiB | of naive | less the gradients, MiB | of naive | resident MiB | s "
        "| error of values | of gradients |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    first: dict[str, float] | None = None
    for method in METHODS:
        command = [
            sys.executable,
            "-W",
            "ignore",
            "-m",
            "benchmarks.logprobs",
            "--method",
            method,
            *["--quick"] * options.quick,
        ]
        done = subprocess.run(
            command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[1]
        )
        found = json.loads(done.stdout.splitlines()[-1])
        first = first or found
        counted, resident = found["counted"], found["resident"]
        beyond, beyond_naive = counted - found["gradients"], first["counted"] - first["gradients"]
        print(
            f"| {method} | {counted / 2**20:,.0f} | {counted / first['counted']:.3f} | {beyond / 2**20:,.0f} "
            f"| {beyond / beyond_naive:.3f} | {resident / 2**20:,.0f} | {found['seconds']:.1f} "
            f"| {found['value_error']:.1e} | {found['gradient_error']:.1e} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
