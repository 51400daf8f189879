"""Demonstrations of several turns have the tokens of the conversation as its chat template writes it."""

from collections.abc import Sequence

import pytest

from megatron_prime.config.tables.data import DataConfig
from megatron_prime.data.conversations.demonstrations import turn_texts, turn_tokens
from megatron_prime.data.rendering import PromptRenderer
from megatron_prime.data.rows import RenderingError
from megatron_prime.types import Turn, policy_mask
from tests.support.tokenizers import byte_tokenizer

QWEN = (
    "{%- for m in messages %}"
    "{%- if m.role == 'tool' %}{{ '[user]<result>' + m.content + '</result><eos>\n' }}"
    "{%- else %}{{ '[' + m.role + ']' }}"
    "{%- if m.reasoning_content %}{{ '<think>\n' + m.reasoning_content + '\n</think>\n\n' }}{% endif %}"
    "{{- m.content }}"
    "{%- for call in m.tool_calls or [] %}{{ '<tool_call>' + call.function.name + "
    "(call.function.arguments | tojson) + '</tool_call>' }}{% endfor %}{{ '<eos>\n' }}{% endif %}{% endfor %}"
    "{%- if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
)
EMPTY_THOUGHTS = QWEN.replace(
    "{{- m.content }}",
    "{%- if loop.last and m.role == 'assistant' and not m.reasoning_content %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}{{- m.content }}",
)
"""Writes thoughts into the last message of a conversation even where it has none, as Qwen3's template does."""


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def says(text: str, **more: object) -> dict:
    return {"role": "assistant", "content": text, **more}


def result(text: str) -> dict:
    return {"role": "tool", "content": text}


def call(name: str, **arguments: object) -> dict:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


CONVERSATIONS = {
    "one turn": [user("q"), says("a")],
    "two turns": [user("q"), says("a"), user("r"), says("b c")],
    "a tool": [user("q"), says("", tool_calls=[call("f", x=1)]), result("5"), says("five")],
    "two calls in one turn": [
        user("q"),
        says("wait", tool_calls=[call("f", x=1), call("g")]),
        result("5"),
        result("6"),
        says("five, six"),
    ],
    "a call at the end": [user("q"), says("a"), user("r"), says("", tool_calls=[call("f")])],
    "thoughts in each turn": [
        user("q"),
        says("a", reasoning_content="t"),
        user("r"),
        says("", reasoning_content="u", tool_calls=[call("f", y="é")]),
        result("5"),
        says("b", reasoning_content="v"),
    ],
}


def read(conversation: Sequence[dict], template: str | None, **config: object):
    """Return the tokenizer, prompt and response of a conversation, and the places of its turns."""
    tokenizer = byte_tokenizer(template)
    renderer = PromptRenderer(DataConfig(**config), tokenizer)
    prompt, answer = conversation[:1], conversation[1:]
    rendered = renderer.render(prompt, is_question=False)
    texts = turn_texts(renderer, renderer.complete(prompt), rendered, answer)
    return tokenizer, rendered.text, *turn_tokens(texts, tokenizer)


@pytest.mark.parametrize("template", [QWEN, EMPTY_THOUGHTS], ids=["plain", "empty thoughts"])
@pytest.mark.parametrize("case", CONVERSATIONS)
def test_the_tokens_are_those_of_the_whole_conversation(case, template):
    conversation = CONVERSATIONS[case]
    tokenizer, prompt, token_ids, turns = read(conversation, template)
    whole = tokenizer.apply_chat_template(conversation, chat_template=QWEN, tokenize=False)
    assert prompt + tokenizer.decode(list(token_ids)) == whole.removesuffix("\n")
    written = [
        tokenizer.apply_chat_template([user("q"), message], chat_template=QWEN, tokenize=False)
        .partition("[assistant]")[2]
        .removesuffix("\n")
        for message in conversation
        if message["role"] == "assistant"
    ]
    mask = policy_mask(turns, len(token_ids))
    trained = [token for token, is_policy in zip(token_ids, mask, strict=True) if is_policy]
    assert tokenizer.decode(trained) == "".join(written)
    assert len(turns) == (len(written) if len(written) > 1 else 0)


def test_the_places_of_turns():
    _, _, token_ids, turns = read(
        [user("q"), says("ab"), user("cde"), says("f")], None, chat_template="never"
    )
    assert len(token_ids) == 8
    assert turns == (Turn(3, 6), Turn(8, 8))


def test_texts_are_joined_without_a_template():
    conversation = [user("q"), says("a"), user("r"), user("s"), says("b")]
    tokenizer, prompt, token_ids, _ = read(conversation, None, chat_template="never")
    assert prompt + tokenizer.decode(list(token_ids)) == "qa<eos>r\nsb<eos>"


def test_a_template_that_leaves_out_replies_is_refused():
    without_tools = (
        "{% for m in messages if m.role != 'tool' %}[{{ m.role }}]{{ m.content }}<eos>{% endfor %}[assistant]"
    )
    with pytest.raises(
        RenderingError, match=r"does not write messages behind a turn of the assistant: \['tool'\]"
    ):
        read([user("q"), says("a"), result("5"), says("b")], without_tools)
