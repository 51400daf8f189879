"""The tokens of an environment's replies, as the chat template writes them behind the policy's turn.

    prompt, [assistant] turn <stop> [user] reply [assistant] turn <stop> ...
                                  '------ reply ------'

The policy's tokens stay as they were sampled. A reply is the text from behind the stop token up to where the policy
continues, tokenized in the place where it stands. That is what the template writes for the whole conversation, if the
template only ever appends. `check` finds those that do not: they move or rewrite what the policy has seen.
"""

import json
import re
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from megatron_prime.data.conversations.literal_text import encode_literal
from megatron_prime.data.conversations.tool_calls import Schema
from megatron_prime.data.messages import Message
from megatron_prime.data.rendering import PromptRenderer
from megatron_prime.data.rows import RenderingError

MAX_KNOWN = 4096
MAX_KNOWN_CHARACTERS = 256
"""Replies whose tokens are remembered, and the longest of them: environments repeat short ones again and again."""
_TURN, _SECOND = "turn one", "turn two"
_THOUGHT = "a thought"
_THOUGHTS = r"<(think|thinking|thought|reasoning)>\s*"
_OPENED = re.compile(rf"{_THOUGHTS}(</\1>\s*)?\Z")
"""Thoughts that the template opens, and maybe closes, where the policy continues."""
_EMPTY = re.compile(rf"\s*({_THOUGHTS}</\2>\s*)?\Z")
"""Thoughts that a template writes for a message without any."""


class ReplyRenderer:
    """Writes prompts and replies of environments as tokens.

    Args:
        renderer: Applies the chat template.
        tokenizer: The policy's tokenizer.
        stop_token_ids: Tokens that end a turn.
        tools: Schemas that the template writes into every prompt.
    """

    def __init__(
        self,
        renderer: PromptRenderer,
        tokenizer: PreTrainedTokenizerBase,
        stop_token_ids: Sequence[int],
        tools: Sequence[Schema] = (),
    ) -> None:
        self._renderer = renderer
        self._tokenizer = tokenizer
        self._tools = tools
        self._stop_word = str(tokenizer.decode([stop_token_ids[0]]))
        self._checked: dict[tuple[tuple[str, ...], tuple[str, ...]], str] = {}
        """(roles of the prompt, roles of a reply) -> what is wrong with the template, or ""."""
        self._known: dict[str, tuple[int, ...]] = {}
        """Short replies as JSON -> their tokens."""
        self.noted: list[str] = []
        """Remarks about the template, found so far; see `notes`."""

    def prompt_ids(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Return the tokens of a prompt. Raises ValueError if the template fails or leaves out a message."""
        (token_ids,) = self._renderer.tokenize([self._renderer.render_messages(messages, self._tools)])
        if not token_ids:
            raise ValueError("the prompt has no tokens")
        return tuple(token_ids)

    def reply_ids(self, prompt: Sequence[Message], reply: Sequence[Message]) -> tuple[int, ...]:
        """Return the tokens of messages that answer a turn.

        Args:
            prompt: Messages of the prompt.
            reply: Messages that follow the policy's.

        Raises:
            ValueError: The template fails, leaves out a message, or does more than to append; see `check`.
        """
        roles = _roles(prompt), _roles(reply)
        if roles not in self._checked:
            self._checked[roles] = "".join(self.check(prompt, reply))
            if not self._checked[roles]:
                self.noted += [note for note in self.notes(prompt, reply) if note not in self.noted]
        if self._checked[roles]:
            raise RenderingError(self._checked[roles])
        name = json.dumps(reply)
        if name in self._known:
            return self._known[name]
        token_ids = tuple(encode_literal(self._tokenizer, self._renderer.reply(reply), self._stop_word))
        if len(name) <= MAX_KNOWN_CHARACTERS and len(self._known) < MAX_KNOWN:
            self._known[name] = token_ids
        return token_ids

    def check(self, prompt: Sequence[Message], reply: Sequence[Message]) -> list[str]:
        """Return why the template cannot be used for conversations that begin in this way; empty if it can."""
        reply = self._renderer.literal(reply)
        begin = self._renderer.render_messages(prompt, self._tools)
        if not begin.has_special_tokens:
            return []
        turn, second = ({"role": "assistant", "content": text} for text in (_TURN, _SECOND))
        try:
            whole = self._render([*prompt, turn, *reply])
            longer = self._render([*prompt, turn, *reply, second, *reply])
        except ValueError as error:
            return [f"the chat template cannot write a conversation of several turns: {error}"]
        head = _OPENED.sub("", begin.text)
        between, found, behind = whole.removeprefix(head).partition(_TURN)
        if not whole.startswith(head) or not found or not _EMPTY.fullmatch(between):
            return [
                "the chat template writes the prompt differently once a reply follows, but the policy has seen it: "
                f"{_difference(begin.text, whole)}; name a template that only appends by data.chat_template_file"
            ]
        text = self._renderer.behind_stop(behind)
        if text == behind:
            return [
                f"the chat template ends a turn with {behind[:40]!r}, which begins with no token that ends a turn of "
                "the policy: add it to eos_token_id in generation_config.json"
            ]
        continued = _OPENED.sub("", whole)
        if not _squeezed(longer).startswith(_squeezed(continued)) or self._renderer.reply(reply) != text:
            return [
                "the chat template writes turns or replies differently once others follow, but the policy has seen "
                "them: "
                f"{_difference(whole, longer)}; name a template that only appends by data.chat_template_file"
            ]
        return []

    def notes(self, prompt: Sequence[Message], reply: Sequence[Message]) -> list[str]:
        """Return what one should know about the template of these conversations; empty if there is nothing."""
        if not self._renderer.render_messages(prompt, self._tools).has_special_tokens:
            return []
        turn, second, thought = (
            {"role": "assistant", "content": text}
            for text in (_TURN, _SECOND, f"<think>\n{_THOUGHT}\n</think>\n\n{_TURN}")
        )
        notes = []
        if _THOUGHT not in self._render([*prompt, thought, *reply]):
            notes.append(
                "the chat template leaves out the thoughts of earlier turns when a conversation is written anew; here "
                "the policy goes on seeing them, as it wrote them. A server that applies the template shows it less "
                "than it was trained on"
            )
        whole = self._render([*prompt, turn, *reply])
        longer = self._render([*prompt, turn, *reply, second, *reply])
        if not longer.startswith(_OPENED.sub("", whole)):
            notes.append(
                "the chat template writes white space differently once other messages follow, which the policy does "
                f"not see here: {_difference(whole, longer)}"
            )
        return notes

    def _render(self, messages: Sequence[Message]) -> str:
        return self._renderer.render_messages(messages, self._tools).text


def _squeezed(text: str) -> str:
    """Return a text without white space, which some templates write differently at the end of a conversation."""
    return "".join(text.split())


def _roles(messages: Sequence[Message]) -> tuple[str, ...]:
    return tuple(message["role"] for message in messages)


def _difference(before: str, after: str) -> str:
    """Return where two texts part."""
    place = next(
        (place for place, (one, other) in enumerate(zip(before, after, strict=False)) if one != other),
        min(len(before), len(after)),
    )
    start = max(0, place - 20)
    return f"{before[start : place + 30]!r} became {after[start : place + 30]!r}"
