"""Rendering of a problem's text or chat messages to the token ids that the model receives."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from megatron_prime.config.tables.data import DataConfig
from megatron_prime.data.layouts import Message

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

    Raises:
        ValueError: If the template file cannot be read.
    """

    def __init__(self, config: DataConfig, tokenizer: PreTrainedTokenizerBase) -> None:
        self._config = config
        self._tokenizer = tokenizer
        default: Any = tokenizer.chat_template
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

    def render(self, prompt: str | Sequence[Message], is_question: bool) -> Rendered:
        """Return the prompt as the text that the model receives.

        Args:
            prompt: Text or chat messages.
            is_question: True for text that data.chat_template = "auto" turns into a user message if there is a
                chat template.

        Raises:
            ValueError: If the prompt needs a chat template and there is none, or the template fails.
        """
        config = self._config
        is_chat = not isinstance(prompt, str) or config.system_prompt is not None
        messages = self._messages(prompt)
        as_chat = config.chat_template == "always" or (
            config.chat_template == "auto" and (is_chat or (is_question and self._template is not None))
        )
        if not as_chat:
            return Rendered("\n".join(message["content"] for message in messages), False)
        if self._template is None:
            raise ValueError(
                "the tokenizer has no chat template for this prompt: give one with data.chat_template_file, or set "
                "data.chat_template = 'never' to join the texts of the messages instead"
            )
        try:
            text = self._tokenizer.apply_chat_template(
                messages,
                chat_template=self._template,
                tokenize=False,
                add_generation_prompt=True,
                dates_of_the_run=self._dates,
            )
        except Exception as error:  # a template is a program of the user's and may raise anything
            raise ValueError(f"the chat template fails on this prompt: {error}") from error
        return Rendered(str(text), True)

    def tokenize(self, prompts: Sequence[Rendered]) -> list[list[int]]:
        """Return the token ids of each prompt; tokenizing them in one call uses the tokenizer's threads."""
        token_ids: list[list[int]] = [[] for _ in prompts]
        for has_special_tokens in (False, True):
            indices = [
                index
                for index, prompt in enumerate(prompts)
                if prompt.has_special_tokens is has_special_tokens
            ]
            if indices:
                texts = [prompts[index].text for index in indices]
                # Switched off explicitly: a tokenizer file may enable truncation or padding.
                batch = self._tokenizer(
                    texts, add_special_tokens=not has_special_tokens, truncation=False, padding=False
                )
                num_appended = 0 if has_special_tokens else self._appended_to(texts, batch["input_ids"])
                for index, ids in zip(indices, batch["input_ids"], strict=True):
                    token_ids[index] = list(ids)[: len(ids) - num_appended]
        return token_ids

    def _appended_to(self, texts: Sequence[str], token_ids: Sequence[Sequence[int]]) -> int:
        """Return how many special tokens, such as an end of sequence, the tokenizer puts behind each text."""
        if self._num_appended is None:
            # Any text shows it. One that is no prompt may have no tokens in this tokenizer.
            text, whole = max(zip(texts, token_ids, strict=True), key=lambda pair: len(pair[1]))
            bare = self._tokenizer(text, add_special_tokens=False, truncation=False)["input_ids"]
            if not bare:
                return 0
            starts = range(len(whole) - len(bare) + 1)
            found = (start for start in starts if list(whole[start : start + len(bare)]) == list(bare))
            self._num_appended = len(whole) - len(bare) - next(found, len(whole) - len(bare))
        return self._num_appended

    def _messages(self, prompt: str | Sequence[Message]) -> list[Message]:
        config = self._config
        messages = (
            [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(m) for m in prompt]
        )
        if config.instruction:
            last = messages[-1]
            messages[-1] = last | {"content": f"{last['content']}\n\n{config.instruction}"}
        # A system message of the data takes precedence.
        if config.system_prompt is not None and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": config.system_prompt})
        return messages


def _read_template(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"data.chat_template_file = {path} cannot be read: {error}") from error
