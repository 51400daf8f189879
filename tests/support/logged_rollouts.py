"""Rows of rollout logs for tests of everything that reads them."""

from typing import Any

import numpy as np


def logged_response(group: int = 0, sample: int = 0, num_tokens: int = 3, **changes: Any) -> dict[str, Any]:
    """Return a kept response whose per-token values differ from each other and from those of other responses."""
    start = 100 * group + 10 * sample
    values = np.arange(start, start + num_tokens, dtype=np.float32)
    return {
        "group": group,
        "sample": sample,
        "prompt_index": 7 + group,
        "source": "sums",
        "ability": "math",
        "ground_truth": "4",
        "prompt": "<user>2 + 2?",
        "prompt_token_ids": [1, 2, 3],
        "response": "x" * num_tokens,
        "response_token_ids": list(range(num_tokens)),
        "token_ends": list(range(1, num_tokens + 1)),
        "step_ends": [num_tokens],
        "mask": [True] * num_tokens,
        "outcome_reward": float(sample % 2),
        "reason": "",
        "finish_reason": "stop",
        "policy_version": 11,
        "filter": "kept",
        "rollout_logprobs": -values / 8,
        "policy_logprobs": -values / 7,
        "prm_logprobs": -values / 6,
        "ref_logprobs": -values / 5,
        "process_rewards": values / 100,
        "advantages": values - 1,
        "entropy": values / 3,
    } | changes
