"""A ragged batch for the tests of training, and losses in plain HF and torch as the oracle."""

import torch

LENGTHS = [(3, 5), (7, 2), (1, 9), (4, 4), (6, 8), (2, 1), (5, 9)]
"""(prompt, response) lengths in tokens, 66 tokens in all."""
TURNS = {0: ((2, 4), (5, 5)), 2: ((3, 5), (7, 9)), 4: ((1, 6), (8, 8))}
"""(end of the policy's tokens, end of the reply) of each turn of some rows, counted in response tokens."""
GROUPS = [0, 0, 0, 1, 1, 2, 2]
LABELS = [1.0, 0.0, 1.0, 0.0, 1.0, 1.0, 0.0]
POLICY_SETTINGS = {"clip_low": 0.2, "clip_high": 0.3, "entropy_coef": 0.02, "kl_coef": 0.1}
BETA = 0.5


def ragged_batch(model, vocab_size=300, seed=5):
    """Return sequences and all loss inputs, with log-probs close to the model's, so that some ratios are clipped."""
    generator = torch.Generator().manual_seed(seed)
    sequences = [
        tuple(torch.randint(0, vocab_size, (length,), generator=generator).tolist() for length in pair)
        for pair in LENGTHS
    ]
    mask_BT, policy_BT = masks()
    with torch.no_grad():
        logprobs_BT, _ = score_with_hf(model, sequences, mask_BT.shape[1])

    def near(spread):
        noise_BT = spread * torch.randn(mask_BT.shape, generator=generator)
        return torch.where(mask_BT, logprobs_BT + noise_BT, 0.0)

    return {
        "sequences": sequences,
        "mask": mask_BT,
        "policy_mask": policy_BT,
        "old": near(0.2),
        "ref": near(0.5),
        "advantages": torch.where(mask_BT, torch.randn(mask_BT.shape, generator=generator), 0.0),
        "labels": torch.tensor(LABELS),
        "settings": POLICY_SETTINGS,
        "beta": BETA,
    }


def masks():
    """Return the mask of the responses and that of the policy's tokens, [B, T]."""
    num_columns = max(response for _, response in LENGTHS)
    mask_BT = torch.arange(num_columns) < torch.tensor([[response] for _, response in LENGTHS])
    policy_BT = mask_BT.clone()
    for row, turns in TURNS.items():
        for start, end in turns:
            policy_BT[row, start:end] = False
    return mask_BT, policy_BT


def score_with_hf(model, sequences, num_columns):
    """Return log-probs and entropies [B, T], computed for one sequence at a time."""
    logprobs, entropies = [], []
    for prompt, response in sequences:
        logits = model(torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1]
        full = torch.log_softmax(logits, dim=-1)
        padding = (0, num_columns - len(response))
        picked = full[range(len(response)), response]
        logprobs.append(torch.nn.functional.pad(picked, padding))
        entropies.append(torch.nn.functional.pad(-(full.exp() * full).sum(-1), padding))
    return torch.stack(logprobs), torch.stack(entropies)


def plain_policy_loss(batch, rows, logprobs_BT, entropy_BT):
    """Return PPO clip, entropy bonus and k3 as printed in the papers, averaged over the policy's tokens."""
    mask = batch["policy_mask"][rows]
    logprobs, old = logprobs_BT[rows][mask], batch["old"][rows][mask]
    advantages = batch["advantages"][rows][mask]
    ratio = (logprobs - old).exp()
    clipped = ratio.clamp(1 - POLICY_SETTINGS["clip_low"], 1 + POLICY_SETTINGS["clip_high"])
    surrogate = torch.minimum(ratio * advantages, clipped * advantages)
    gap = logprobs - batch["ref"][rows][mask]
    k3 = (-gap).exp() - 1 + gap
    entropy = entropy_BT[rows][mask]
    return (-surrogate - POLICY_SETTINGS["entropy_coef"] * entropy + POLICY_SETTINGS["kl_coef"] * k3).mean()


def plain_load_balance_loss(model, sequences, rows):
    """Return DeepSeek-V3's sequence-wise loss (Eq. 17-20), summed over layers and averaged over rows."""
    num_experts, num_chosen = model.config.num_local_experts, model.config.num_experts_per_tok
    losses = []
    for row in rows:
        prompt, response = sequences[row]
        output = model(torch.tensor([[*prompt, *response]]), output_router_logits=True)
        for logits in output.router_logits:
            probs = torch.softmax(logits, dim=-1)
            chosen = torch.zeros_like(probs)
            for token, experts in enumerate(probs.topk(num_chosen, dim=-1).indices):
                chosen[token, experts] = 1.0
            frequencies = num_experts / num_chosen * chosen.mean(dim=0)
            losses.append((frequencies * probs.mean(dim=0)).sum() / len(rows))
    return sum(losses)


def plain_prm_loss(batch, rows, logprobs_BT, entropy_BT):
    """Return the cross-entropy of sigmoid(beta * sum of log-ratios), averaged over the minibatch's responses."""
    ratios_BT = torch.where(batch["mask"], logprobs_BT - batch["ref"], 0.0)[rows]
    probability = torch.sigmoid(BETA * ratios_BT.sum(dim=1).double())
    labels = batch["labels"][rows].double()
    return -(labels * probability.log() + (1 - labels) * (1 - probability).log()).mean()


PLAIN_LOSSES = {"policy": plain_policy_loss, "prm": plain_prm_loss}
