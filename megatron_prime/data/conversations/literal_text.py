"""Text that an environment or a tool wrote, in which the words of special tokens stay words.

A tool prints what the policy or a web page asks it to, such as `<|im_end|>`. As special tokens that would end the turn
of the tool and begin one of a user. Such a word is therefore marked before the chat template writes the messages, and
the text is tokenized in the pieces between the marks: the model reads the same text, in ordinary tokens.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from megatron_prime.data.messages import Message
from megatron_prime.data.tokenizer import encode

MARK = "\ufdd0"
"""Stands within a word of a special token. Unicode assigns this code to no character, for such purposes."""
_CONTROL = re.compile(r"<[|\N{FULLWIDTH VERTICAL LINE}].*[|\N{FULLWIDTH VERTICAL LINE}]>", re.DOTALL)
"""Control tokens that tokenizers such as DeepSeek's do not declare as special."""


def special_words(tokenizer: PreTrainedTokenizerBase, stop_words: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the texts that the tokenizer turns into special tokens, and those that end a turn."""
    of_tokens: Any = tokenizer
    added = of_tokens.added_tokens_decoder.values()
    words = {token.content for token in added if token.special or _CONTROL.fullmatch(token.content)}
    words |= {str(word) for word in (*of_tokens.all_special_tokens, *stop_words)}
    # A word of one character has no pieces.
    return tuple(sorted(word for word in words if len(word) > 1))


def literal(messages: Sequence[Message], words: Sequence[str]) -> list[Message]:
    """Return messages whose texts have a mark within each of the words."""
    return [
        {name: value if name == "role" else _marked(value, words) for name, value in message.items()}
        for message in messages
    ]


def unmarked(text: str) -> str:
    """Return a text without marks."""
    return text.replace(MARK, "")


def encode_literal(tokenizer: PreTrainedTokenizerBase, text: str, behind: str = "") -> list[int]:
    """Return the tokens of a text that the chat template wrote from marked messages.

    Args:
        tokenizer: The policy's tokenizer.
        text: The text.
        behind: The text of the token that precedes it, where some tokenizers would otherwise begin with a blank.

    Raises:
        ValueError: The tokenizer fails on the text.
    """
    first, *rest = text.split(MARK)
    before, whole, alone, *pieces = encode(tokenizer, [behind, behind + first, first, *rest])
    is_token = len(before) == 1 and whole[:1] == before
    return [*(whole[1:] if is_token else alone), *(token for piece in pieces for token in piece)]


def _marked(value: Any, words: Sequence[str]) -> Any:  # noqa: ANN401 - JSON values
    if isinstance(value, Mapping):
        return {name: _marked(each, words) for name, each in value.items()}
    if isinstance(value, list):
        return [_marked(each, words) for each in value]
    if not isinstance(value, str):
        return value
    text = unmarked(value)
    for word in words:
        # Again, as long as occurrences that overlap are left.
        while word in text:
            text = text.replace(word, f"{word[0]}{MARK}{word[1:]}")
    return text
