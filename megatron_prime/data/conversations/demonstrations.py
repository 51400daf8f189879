"""The turns of a demonstrated conversation as a rollout with an environment would have them.

In a rollout the policy writes a turn, which ends with its stop token; the environment's reply is appended as text that
is tokenized alone, and the policy continues. A demonstration is made of the same pieces, so that SFT trains what
rollouts see. A chat template may write a whole conversation differently: Qwen3's leaves out thoughts of earlier turns.
"""

from collections.abc import Sequence
from itertools import accumulate

from transformers import PreTrainedTokenizerBase

from megatron_prime.data.conversations.literal_text import encode_literal
from megatron_prime.data.conversations.tool_calls import Schema
from megatron_prime.data.messages import Message
from megatron_prime.data.rendering import PromptRenderer, Rendered
from megatron_prime.data.tokenizer import response_token_ids
from megatron_prime.types import Turn


def turn_texts(
    renderer: PromptRenderer,
    prompt: Sequence[Message],
    rendered: Rendered,
    answer: str | Sequence[Message],
    tools: Sequence[Schema] = (),
) -> list[str]:
    """Return the texts of a demonstration: a turn of the policy, a reply, a turn, and so on.

    Args:
        renderer: Renders the data set.
        prompt: The messages of the prompt, with system prompt and instruction.
        rendered: The prompt as text.
        answer: The response as text, or the messages behind the prompt, which begin and end with the assistant's.
        tools: The schemas of tools in the prompt.

    Raises:
        ValueError: A message cannot be written as the chat template would.
    """
    if isinstance(answer, str):
        return [renderer.response(prompt, rendered, answer)]
    messages, texts = list(prompt), list[str]()
    replies: list[Message] = []
    for message in answer:
        if message["role"] != "assistant":
            replies.append(message)
            continue
        if replies:
            text = renderer.reply(replies)
            texts.append(text)
            rendered = Rendered(text, rendered.has_special_tokens)
            messages += replies
            replies = []
        texts.append(renderer.response(messages, rendered, message, tools))
        messages.append(message)
    return texts


def turn_tokens(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase
) -> tuple[tuple[int, ...], tuple[Turn, ...]]:
    """Return the tokens of a demonstration, and the places of its turns; no places if there is one turn.

    Args:
        texts: See `turn_texts`.
        tokenizer: The policy's tokenizer.

    Raises:
        ValueError: The tokenizer fails, or a turn has no tokens or continues behind an end of sequence.
    """
    pieces = response_token_ids(texts[::2], tokenizer)
    if len(pieces) == 1:
        return pieces[0], ()
    stop = str(tokenizer.eos_token)
    replies = [tuple(encode_literal(tokenizer, text, stop)) for text in texts[1::2]]
    for place, reply in enumerate(replies):
        pieces.insert(2 * place + 1, reply)
    ends = list(accumulate(map(len, pieces)))
    turns = [
        Turn(policy_end, end) for policy_end, end in zip(ends[::2], [*ends[1::2], ends[-1]], strict=True)
    ]
    return tuple(token for piece in pieces for token in piece), tuple(turns)
