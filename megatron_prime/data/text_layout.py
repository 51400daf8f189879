"""The text of a response with the places of its tokens and reasoning steps, as rollout logs hold them."""

from collections.abc import Sequence
from dataclasses import dataclass

from megatron_prime.data.steps import step_ids
from megatron_prime.data.token_ends import token_ends
from megatron_prime.types import Decoder


@dataclass(frozen=True, slots=True)
class TextLayout:
    """The text of a response, and where its tokens and steps end."""

    text: str
    """The response without special tokens, as verifiers see it."""
    token_ends: list[int]
    """See `data.token_ends.token_ends`."""
    step_ends: list[int]
    """Number of tokens up to the end of each reasoning step."""


def text_layout(tokenizer: Decoder, response_ids: Sequence[int]) -> TextLayout:
    """Return the layout of a response."""
    text = tokenizer.decode(list(response_ids), skip_special_tokens=True)
    steps = step_ids(tokenizer, response_ids)
    ends = [index for index in range(1, len(steps)) if steps[index] != steps[index - 1]]
    return TextLayout(text, token_ends(tokenizer, response_ids, text), [*ends, len(steps)] if steps else [])
