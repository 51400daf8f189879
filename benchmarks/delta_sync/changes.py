"""The share of bf16 weights, and of blocks of them, that one step changes."""

import copy
import random
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

BLOCK_BYTES = (64, 256, 4096)
LEARNING_RATES = (5e-7, 1e-6, 5e-6, 1e-5)
UPDATES = (1, 4)
"""Optimizer updates in a step, as policy.num_minibatches."""
STEPS = (1, 2, 4, 8, 16)
"""Steps after which changes are measured: the moments of Adam start at zero, as in a run."""
_NUM_PRETRAINING = 400


def measure_changes() -> Iterator[tuple[float, int, int, list[float]]]:
    """Yield (learning rate, updates in a step, step, shares of the elements and of each kind of block)."""
    torch.manual_seed(0)
    model, text, generator = _model(), _text(), random.Random(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    for step in range(_NUM_PRETRAINING):
        # The weights of a trained model, not of an initialisation.
        optimizer.param_groups[0]["lr"] = 2e-3 * min(1, step / 40) * (1 - step / (_NUM_PRETRAINING + 50))
        tokens = _batch(text, generator)
        _update(model, optimizer, model(input_ids=tokens, labels=tokens).loss)
    state = copy.deepcopy(model.state_dict())
    for rate in LEARNING_RATES:
        for num_updates in UPDATES:
            model.load_state_dict(state)
            optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
            before = _rounded(model)
            for step in range(1, max(STEPS) + 1):
                for _ in range(num_updates):
                    _update(model, optimizer, _policy_loss(model, _batch(text, generator)))
                after = _rounded(model)
                if step in STEPS:
                    yield rate, num_updates, step, _shares(before, after)
                before = after


def _model() -> LlamaForCausalLM:
    sizes = {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 4, "head_dim": 32}
    heads = {"num_attention_heads": 6, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=256, max_position_embeddings=512, **sizes, **heads))


def _text() -> bytes:
    """Return bytes of Python's own library, which every machine has."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    return b"".join(path.read_bytes() for path in sorted(folder.glob("*.py"))[:120])


def _batch(text: bytes, generator: random.Random, num_rows: int = 16, length: int = 64) -> torch.Tensor:
    starts = [generator.randrange(len(text) - length) for _ in range(num_rows)]
    return torch.tensor([list(text[start : start + length]) for start in starts])


def _policy_loss(model: LlamaForCausalLM, tokens: torch.Tensor) -> torch.Tensor:
    """Return a policy gradient's loss with random advantages of mean zero: gradients that are mostly noise."""
    logits = model(input_ids=tokens).logits[:, :-1]
    logprobs = logits.log_softmax(-1).gather(-1, tokens[:, 1:, None])[..., 0]
    advantages = torch.randn(len(tokens), 1)
    return -((advantages - advantages.mean()) * logprobs).mean()


def _update(model: LlamaForCausalLM, optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def _rounded(model: LlamaForCausalLM) -> list[torch.Tensor]:
    return [parameter.detach().bfloat16() for parameter in model.parameters()]


def _shares(before: Sequence[torch.Tensor], after: Sequence[torch.Tensor]) -> list[float]:
    pairs = zip(before, after, strict=True)
    is_changed = torch.cat([(a.view(torch.int16) != b.view(torch.int16)).flatten() for a, b in pairs])
    shares = [is_changed.double().mean().item()]
    for num_bytes in BLOCK_BYTES:
        size = num_bytes // 2
        whole = is_changed[: len(is_changed) // size * size]
        shares.append(whole.view(-1, size).any(1).double().mean().item())
    return shares
