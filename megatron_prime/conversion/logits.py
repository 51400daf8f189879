"""Comparison of a converted checkpoint with its source by the log-probs of transformers and Megatron.

Both models are loaded completely, one after the other, so they must fit into the memory of this machine.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from megatron_prime.models.builder import build_model
from megatron_prime.models.experts import RoutedSeqParams
from megatron_prime.models.gpt import ScoreRequest
from megatron_prime.models.megatron_folder import load_megatron_weights
from megatron_prime.models.packed_sequences import pack_sequences
from megatron_prime.parallel.platform import select_platform
from megatron_prime.parallel.topology import build_topology

NUM_TOKENS = 24
TOLERANCE = 1e-4
"""Accepted difference of float32 log-probs; a misplaced tensor changes them by far more."""
CAST_TOLERANCE = 0.3
"""Accepted difference after a cast to another dtype; large, but still below the effect of a misplaced tensor."""


def tolerance_of(dtype: str) -> float:
    """Return the accepted difference for a conversion with the given dtype option ("keep": no cast)."""
    return TOLERANCE if dtype == "keep" else CAST_TOLERANCE


def compare_logits(hf_folder: Path, weights: Path, tolerance: float = TOLERANCE) -> float:
    """Return the largest difference of next-token log-probs, over the vocabulary, on a short random sequence.

    Args:
        hf_folder: HF checkpoint; computed in float32.
        weights: Megatron checkpoint of format torch_dist; computed in float32.
        tolerance: largest accepted difference.

    Raises:
        ValueError: the models differ by more than `tolerance`.
    """
    platform = select_platform("cpu", "fp32", 1, 600.0)
    platform.start_process_group()
    topology = build_topology(platform)
    built = build_model(hf_folder, topology, load_weights=False)
    load_megatron_weights(built.chunks, weights, topology)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, built.shape.vocab_size, (NUM_TOKENS,), generator=generator)
    ours = _megatron_logprobs(built.chunks[0], built.shape.vocab_size, tokens)
    del built
    topology.close()
    theirs_model: Any = AutoModelForCausalLM.from_pretrained(hf_folder, dtype=torch.float32)
    with torch.no_grad():
        theirs = torch.log_softmax(theirs_model(tokens[None]).logits[0], -1)
    difference = float((ours - theirs).abs().max())
    if not difference <= tolerance:  # Also true if the difference is NaN.
        raise ValueError(
            f"{hf_folder} and {weights} are different models: log-probs differ by up to {difference:.3g}"
        )
    return difference


@torch.no_grad()
def _megatron_logprobs(model: Any, vocab_size: int, tokens: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
    """Return log-probs [tokens, vocabulary], computed from the hidden states before the output layer."""
    # The model itself returns the log-probs of given targets only, so the hidden states are captured by a hook.
    hidden: list[torch.Tensor] = []
    handle = model.decoder.register_forward_hook(lambda _module, _inputs, output: hidden.append(output))
    packed = pack_sequences([(tokens[:-1].tolist(), tokens[-1:].tolist())])
    positions = torch.zeros(1, dtype=torch.int64)
    parameters = RoutedSeqParams(
        qkv_format="thd",
        cu_seqlens_q=packed.cu_seqlens,
        cu_seqlens_kv=packed.cu_seqlens,
        max_seqlen_q=packed.max_seqlen,
        max_seqlen_kv=packed.max_seqlen,
        routing=None,
    )
    request = ScoreRequest(positions, positions, 1.0, 1)
    try:
        model.eval()(packed.token_ids_S, packed.position_ids_S, parameters, request)
    finally:
        handle.remove()
    logits = hidden[0].reshape(len(tokens), -1) @ model.output_weight()[:vocab_size].T
    return torch.log_softmax(logits, -1)
