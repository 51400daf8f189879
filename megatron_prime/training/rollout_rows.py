"""Rows of a rollout log from sampled responses, for all commands that sample."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from megatron_prime.data.steps import step_ids
from megatron_prime.data.text_layout import text_layout
from megatron_prime.rollout.collector import step_ids_of_response
from megatron_prime.rollout.sampled_groups import SampledGroup
from megatron_prime.types import Decoder, Rollout

Figures = Mapping[str, Sequence[float]]
"""Column of a rollout log -> a value per token of a response."""


def rows_of_groups(
    groups: Iterable[SampledGroup],
    tokenizer: Decoder,
    figures: Mapping[tuple[int, int], Figures] | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield the row of each response.

    Args:
        groups: in the order of the file.
        tokenizer: decodes prompts and responses.
        figures: values of the training step, by position of the group in `groups` and sample; responses that were not
            trained on have none.
    """
    for number, group in enumerate(groups):
        prompt = group.rollouts[0].prompt
        common = {
            "group": number,
            "prompt_index": prompt.index,
            "source": prompt.source,
            "ability": prompt.ability,
            "ground_truth": prompt.answer,
            # The prompt is decoded with the special tokens of its chat template, the response as the verifier saw it.
            "prompt": tokenizer.decode(list(prompt.token_ids), skip_special_tokens=False),
            "prompt_token_ids": prompt.token_ids,
            "filter": group.verdict,
        }
        for sample, rollout in enumerate(group.rollouts):
            own = {} if figures is None else figures.get((number, sample), {})
            yield {**common, **_row(rollout, tokenizer), **own}


def _row(rollout: Rollout, tokenizer: Decoder) -> dict[str, Any]:
    layout = text_layout(tokenizer, rollout.response_ids)
    outcome = rollout.outcome_reward
    of_turns = _of_turns(rollout, tokenizer) if rollout.turns else {}
    spans = rollout.version_spans
    of_versions = {"version_ends": [span[2] for span in spans], "versions": [span[0] for span in spans]}
    return {
        "sample": rollout.sample_index,
        "response": layout.text,
        "response_token_ids": rollout.response_ids,
        "token_ends": layout.token_ends,
        "step_ends": layout.step_ends,
        "outcome_reward": None if math.isnan(outcome) else outcome,
        "reason": rollout.reason,
        "finish_reason": rollout.finish_reason.value,
        "policy_version": rollout.policy_version,
        "rollout_logprobs": rollout.rollout_logprobs,
        **of_turns,
        **(of_versions if spans else {}),
    }


def _of_turns(rollout: Rollout, tokenizer: Decoder) -> dict[str, Any]:
    """Return the columns of a response of several turns, and its steps, none of which crosses a reply."""
    steps = step_ids_of_response(partial(step_ids, tokenizer), rollout.response_ids, rollout.turns)
    return {
        "step_ends": [end for end in range(1, len(steps)) if steps[end] != steps[end - 1]] + [len(steps)],
        "policy_mask": rollout.policy_mask,
        "turn_ends": [turn.end for turn in rollout.turns],
        "turn_rewards": [turn.reward for turn in rollout.turns],
    }
