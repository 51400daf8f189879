"""The text of a response with the places of its tokens and reasoning steps, as rollout logs hold them."""

from collections.abc import Sequence
from dataclasses import dataclass

from megatron_prime.data.steps import step_ids_of
from megatron_prime.data.token_ends import decoded_lengths
from megatron_prime.types import Decoder


@dataclass(frozen=True, slots=True)
class TextLayout:
    """The text of a response, and where its tokens and steps end."""

    text: str
    """The response without special tokens, as verifiers see it."""
    token_ends: list[int]
    """End of each token's text, as an offset into `text` in characters. A token that completes no character repeats the
    end before it; the last end is the length of the text."""
    step_ends: list[int]
    """Number of tokens up to the end of each reasoning step."""


def text_layout(tokenizer: Decoder, response_ids: Sequence[int]) -> TextLayout:
    """Return the layout of a response."""
    text = tokenizer.decode(list(response_ids), skip_special_tokens=True)
    lengths = decoded_lengths(tokenizer, response_ids, text)
    if not lengths:
        return TextLayout(text, [], [])
    steps = step_ids_of(text, lengths)
    step_ends = [index for index in range(1, len(steps)) if steps[index] != steps[index - 1]]
    # A response may end within a character, which is nevertheless shown.
    return TextLayout(text, [*lengths[:-1], len(text)], [*step_ends, len(steps)])
