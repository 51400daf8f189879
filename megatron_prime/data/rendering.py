"""Rendering of a problem's text or chat messages to the token ids that the model receives."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from megatron_prime.config.tables.data import DataConfig
from megatron_prime.data.conversations.literal_text import literal, special_words
from megatron_prime.data.conversations.tool_calls import Schema
from megatron_prime.data.messages import THOUGHTS, Message, complete_messages
from megatron_prime.data.rows import RenderingError, SettingsError
from megatron_prime.data.tokenizer import encode

_DATE_FORMAT = re.compile(r"""(?=(['"])((?:(?!\1).)*%(?:(?!\1).)*)\1)""")
"""A text with a percent sign between two quotes: what a template may give to strftime_now. Matches overlap, because an
apostrophe may stand before the text; those that are no formats do no harm."""
_STOPPED_CLOCK = (
    "{% macro strftime_now(text_format) %}{% if text_format in dates_of_the_run %}{{ dates_of_the_run[text_format] }}"
    "{% else %}{{ raise_exception('this format of a date is no constant of the template: ' ~ text_format) }}{% endif %}"
    "{% endmacro %}\n"
)
"""Replaces the function of templates that writes today's date. transformers passes no functions to a template. The
newline is removed again, as is every first one after a block."""
_LAST_TAG = re.compile(r"(<[^<>\s]+>|\[[A-Z_]+\])(\s*)\Z")
"""A tag at the end of a prompt, such as <think>, and the white space behind it."""
_TURN = "a turn of the policy"
_EXAMPLE: list[Message] = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _TURN}]
"""A conversation that shows what a chat template puts behind a turn."""
_NO_THOUGHTS = re.compile(r"\A\s*<(think|thinking|thought|reasoning)>\s*</\1>\s*")
"""Thoughts that a chat template writes although a message has none."""
_THOUGHTS = re.compile(r"<(/?)(think|thinking|thought|reasoning)>")


@dataclass(frozen=True, slots=True)
class Rendered:
    """A prompt as text."""

    text: str
    has_special_tokens: bool
    """True if the chat template wrote the special tokens; adding them again would double the BOS token."""


class PromptRenderer:
    """Applies system prompt, instruction and chat template.

    Args:
        config: Supplies system_prompt, instruction, chat_template, chat_template_file and date.
        tokenizer: The policy's tokenizer.
        stop_token_ids: Tokens that end a turn, besides the end-of-sequence token.

    Raises:
        ValueError: If the template file cannot be read.
    """

    def __init__(
        self, config: DataConfig, tokenizer: PreTrainedTokenizerBase, stop_token_ids: Sequence[int] = ()
    ) -> None:
        self._config = config
        self._stop_words = [str(tokenizer.eos_token), *map(tokenizer.decode, stop_token_ids)]
        self._special_words = special_words(tokenizer, self._stop_words)
        self._tokenizer = tokenizer
        default: Any = tokenizer.chat_template
        if isinstance(default, dict):  # several templates by name
            default = default.get("default")
        self._template = _read_template(config.chat_template_file) or default
        self._num_appended: int | None = None
        """Number of special tokens that the tokenizer puts behind a text; None before the first text."""
        self._dates: dict[str, str] = {}
        # Templates that write today's date would make other prompts of the same data tomorrow.
        if config.date is not None and isinstance(self._template, str) and "strftime_now" in self._template:
            self._dates = {
                text: config.date.strftime(text) for _, text in _DATE_FORMAT.findall(self._template)
            }
            self._template = _STOPPED_CLOCK + self._template

    def log_lines(self) -> list[str]:
        """Return a log line if the tokenizer would end prompts; empty otherwise."""
        if not self._num_appended:
            return []
        return [
            f"the tokenizer puts {self._num_appended} special token(s) behind each text: they are left out of prompts, "
            "which a response is to continue"
        ]

    def render(
        self, prompt: str | Sequence[Message], is_question: bool, tools: Sequence[Schema] = ()
    ) -> Rendered:
        """Return the prompt as the text that the model receives.

        Args:
            prompt: Text or chat messages.
            tools: Schemas that the chat template writes.
            is_question: True for text that data.chat_template = "auto" turns into a user message if there is a
                chat template.

        Raises:
            SettingsError: If the prompt needs a chat template and there is none.
            ValueError: If the template fails or leaves out a message, or the text ends with an end of sequence.
        """
        is_chat = not isinstance(prompt, str) or self._config.system_prompt is not None
        return self._rendered(self.complete(prompt), self._uses_template(is_chat, is_question), tools)

    def render_messages(self, messages: Sequence[Message], tools: Sequence[Schema] = ()) -> Rendered:
        """Return complete messages, as an environment has them, as the text that the model receives.

        The chat template writes them if there is one, unless data.chat_template = "never". Raises as `render`.
        """
        return self._rendered(messages, self._uses_template(is_chat=False, is_question=True), tools)

    def _rendered(self, messages: Sequence[Message], as_chat: bool, tools: Sequence[Schema]) -> Rendered:
        if tools and not as_chat:
            raise SettingsError(
                "only a chat template can write the schemas of tools, and none is used for this prompt"
            )
        text = (
            self._apply(messages, tools) if as_chat else "\n".join(message["content"] for message in messages)
        )
        word = self._tokenizer.eos_token
        if word and text.rstrip().endswith(str(word)):
            raise (RenderingError if as_chat else ValueError)(
                f"the prompt ends with the end-of-sequence token {word}, behind which a response does not continue: "
                + ("the chat template must begin the answer of the assistant" if as_chat else "leave it out")
            )
        return Rendered(text, as_chat)

    def response(
        self,
        messages: Sequence[Message],
        rendered: Rendered,
        response: str | Message,
        tools: Sequence[Schema] = (),
    ) -> str:
        """Return the text that follows a prompt: the response without an opening of thoughts that the prompt has.

        Args:
            messages: The messages of the prompt with system prompt and instruction, and of the turns so far.
            rendered: Their text as `render` or `reply` ends it.
            response: Text, or a message of the assistant, whose thoughts and calls of tools the chat template writes.
            tools: The schemas in the prompt.

        Raises:
            ValueError: If the chat template does not write the thoughts or the calls, or prompt and response do not fit
                together.
        """
        if isinstance(response, str):
            return _continuing(rendered.text, response)
        content, calls = response["content"], response.get("tool_calls")
        thoughts = [response[name] for name in THOUGHTS if name in response]
        if not thoughts and not calls:
            return _continuing(rendered.text, content)
        if not rendered.has_special_tokens:
            raise ValueError(
                "only a chat template can write the thoughts or tool calls of a message; none is used"
            )
        before = self._apply(messages, tools)
        whole = self._apply([*messages, response], tools, is_complete=True)
        text = whole.removeprefix(before)
        end = self._end_of_turn(text) if calls else text.rfind(content.strip()) + len(content.strip())
        if (
            text == whole
            or end < len(content.strip())
            or not all(one.strip() in text[:end] for one in thoughts)
        ):
            raise RenderingError(
                "the chat template does not write the thoughts and calls of a message behind the prompt; they may also "
                "stand in its content"
            )
        text = text[:end]
        return text if thoughts else _NO_THOUGHTS.sub("", text)

    def reply(self, messages: Sequence[Message]) -> str:
        """Return the text of messages that answer a turn, from behind its stop token up to where the policy continues.

        It is the difference of two renderings, of a turn and of a turn with the answer, and is to be tokenized alone by
        `encode_literal`: whatever the policy wrote stays as it is, and no message contains special tokens.

        Raises:
            ValueError: If the chat template fails, or does not write the messages behind the turn.
        """
        messages = self.literal(messages)
        if not self._uses_template(is_chat=False, is_question=True):
            return "\n".join(message["content"] for message in messages)
        text = self._apply([*_EXAMPLE, *messages])
        _, found, reply = text.partition(_TURN)
        if not found or not all(_contains(reply, message["content"]) for message in messages):
            raise RenderingError(
                "the chat template does not write messages behind a turn of the assistant: "
                f"{[message['role'] for message in messages]}"
            )
        return self.behind_stop(reply)

    def literal(self, messages: Sequence[Message]) -> list[Message]:
        """Return messages of an environment, in which the words of special tokens are marked to stay words."""
        return literal(messages, self._special_words)

    def behind_stop(self, text: str) -> str:
        """Return what stands behind the stop token that begins a text; the text itself if none does."""
        bare = text.lstrip()
        found = [word for word in self._stop_words if bare.startswith(word)]
        return bare.removeprefix(max(found, key=len)) if found else text

    def _end_of_turn(self, text: str) -> int:
        """Return where a turn ends in its text, before what the chat template puts behind every turn."""
        _, _, behind = self._apply(_EXAMPLE, is_complete=True).rpartition(_TURN)
        return len(text.rstrip().removesuffix(behind.rstrip()).rstrip())

    def _uses_template(self, is_chat: bool, is_question: bool) -> bool:
        choice = self._config.chat_template
        return choice == "always" or (
            choice == "auto" and (is_chat or (is_question and self._template is not None))
        )

    def _apply(
        self, messages: Sequence[Message], tools: Sequence[Schema] = (), is_complete: bool = False
    ) -> str:
        """Return messages as the chat template writes them, by default with the begin of the next answer."""
        if self._template is None:
            raise SettingsError(
                "the tokenizer has no chat template for this prompt: give one with data.chat_template_file, or set "
                "data.chat_template = 'never' to join the texts of the messages instead"
            )
        try:
            text = str(
                self._tokenizer.apply_chat_template(
                    list(messages),
                    tools=list(tools) or None,
                    chat_template=self._template,
                    tokenize=False,
                    add_generation_prompt=not is_complete,
                    dates_of_the_run=self._dates,
                )
            )
        except Exception as error:  # a template is a program of the user's and may raise anything
            raise RenderingError(f"the chat template fails on this prompt: {error}") from error
        for message in messages:
            # A template may leave out thoughts and results of tools of earlier turns, but nothing that was asked.
            if message["role"] not in ("assistant", "tool") and not _contains(text, message["content"]):
                raise RenderingError(
                    f"the chat template leaves out the message of the {message['role']}; the role may need another name"
                )
            calls = [call["function"]["name"] for call in message.get("tool_calls", ())]
            if not all(name in text for name in calls):
                raise RenderingError(f"the chat template leaves out calls of the tools {', '.join(calls)}")
        missing = [tool["function"]["name"] for tool in tools if tool["function"]["name"] not in text]
        if missing:
            raise RenderingError(f"the chat template leaves out the tools {', '.join(missing)}")
        return text

    def tokenize(self, prompts: Sequence[Rendered]) -> list[list[int]]:
        """Return the token ids of each prompt; tokenizing them in one call uses the tokenizer's threads.

        Raises:
            ValueError: If the tokenizer fails on one of them.
        """
        token_ids: list[list[int]] = [[] for _ in prompts]
        for has_special_tokens in (False, True):
            indices = [
                index
                for index, prompt in enumerate(prompts)
                if prompt.has_special_tokens is has_special_tokens
            ]
            if indices:
                texts = [prompts[index].text for index in indices]
                batch = encode(self._tokenizer, texts, add_special_tokens=not has_special_tokens)
                num_appended = 0 if has_special_tokens else self._appended_to(texts, batch)
                for index, ids in zip(indices, batch, strict=True):
                    token_ids[index] = ids[: len(ids) - num_appended]
        return token_ids

    def _appended_to(self, texts: Sequence[str], token_ids: Sequence[Sequence[int]]) -> int:
        """Return how many special tokens, such as an end of sequence, the tokenizer puts behind each text."""
        if self._num_appended is None:
            # Any text shows it. One that is no prompt may have no tokens in this tokenizer.
            text, whole = max(zip(texts, token_ids, strict=True), key=lambda pair: len(pair[1]))
            (bare,) = encode(self._tokenizer, [text])
            if not bare:
                return 0
            starts = range(len(whole) - len(bare) + 1)
            found = (start for start in starts if list(whole[start : start + len(bare)]) == list(bare))
            self._num_appended = len(whole) - len(bare) - next(found, len(whole) - len(bare))
        return self._num_appended

    def complete(self, prompt: str | Sequence[Message]) -> list[Message]:
        """Return the messages of a prompt with system prompt and instruction."""
        return complete_messages(prompt, self._config)


def _read_template(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        # A byte order mark would become a part of every prompt.
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"data.chat_template_file = {path} cannot be read: {error}") from error


def _contains(text: str, content: str) -> bool:
    """Return whether a text has the content of a message, apart from white space, or as JSON, as Llama's writes it."""
    if content.strip() in text or json.dumps(content, ensure_ascii=False)[1:-1] in text:
        return True
    return "".join(content.split()) in "".join(text.split())


def _continuing(prompt: str, response: str) -> str:
    """Return the response without a tag, such as <think>, that ends the prompt already. Raises ValueError as above."""
    last = _LAST_TAG.search(prompt)
    if last is None:
        return response
    tag, space = last.groups()
    begin = response.lstrip()
    thoughts = _THOUGHTS.fullmatch(tag)
    if thoughts and thoughts[1]:
        if begin.startswith(f"<{thoughts[2]}>"):
            raise ValueError(
                f"the response opens {begin[: len(tag) - 1]}, which the prompt has closed already"
            )
        return response
    if thoughts and f"</{thoughts[2]}>" not in response:
        raise RenderingError(
            f"the prompt opens {tag}, as its chat template does, but the response does not close it: it needs "
            "thoughts, or a template without them"
        )
    if not begin.startswith(tag):
        return response
    rest = begin.removeprefix(tag)
    return rest.removeprefix(space) if rest.startswith(space) else rest.lstrip()
