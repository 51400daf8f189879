"""The pieces of a conversation have the tokens that the chat template writes for the whole of it."""

from dataclasses import dataclass
from typing import Any

import pytest

from megatron_prime.config.tables.data import DataConfig
from megatron_prime.data.conversations.replies import ReplyRenderer
from megatron_prime.data.rendering import PromptRenderer
from megatron_prime.data.rows import RenderingError
from tests.data.conversations import chat_templates as templates
from tests.support.tokenizers import byte_tokenizer

SYSTEM = {"role": "system", "content": "s"}
USER = {"role": "user", "content": "q"}
TOOLS = [{"type": "function", "function": {"name": "look", "description": "d", "parameters": {}}}]
SPECIAL = {
    templates.LLAMA3: ["<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"],
    templates.MISTRAL: ["</s>", "[INST]", "[/INST]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]"],
    templates.GEMMA: ["<end_of_turn>", "<start_of_turn>"],
    templates.DEEPSEEK_R1: ["<|end|>", "<|User|>", "<|Assistant|>"],
}
"""Special tokens of a template, of which the first one ends a turn; the others have those of ChatML."""


def result(text):
    return {"role": "tool", "name": "look", "content": text, "tool_call_id": "call00000"}


def user(text):
    return {"role": "user", "content": text}


@dataclass
class Parts:
    tokenizer: Any
    renderer: ReplyRenderer
    tools: list

    def encode(self, text):
        return tuple(self.tokenizer.encode(text, add_special_tokens=False))

    def whole(self, messages, **options):
        text = self.tokenizer.apply_chat_template(
            messages, tools=self.tools or None, tokenize=False, **options
        )
        return self.encode(text)

    def pieces(self, prompt, turns, replies):
        """Return the tokens of a conversation as a rollout makes them."""
        token_ids = self.renderer.prompt_ids(prompt)
        for turn, reply in zip(turns, [*replies, None], strict=True):
            token_ids += (*self.encode(turn), self.tokenizer.eos_token_id)
            if reply is not None:
                token_ids += self.renderer.reply_ids(prompt, reply)
        return token_ids


def parts(template, tools=(), stop=None, **config):
    tokenizer: Any = byte_tokenizer(template)
    special = SPECIAL.get(template, ["<|im_end|>", "<|im_start|>"])
    tokenizer.add_special_tokens({"additional_special_tokens": [*special, "<bos>", "<other>"]})
    tokenizer.eos_token, tokenizer.bos_token = special[0], "<bos>"
    stop_ids = [tokenizer.eos_token_id] if stop is None else [tokenizer.convert_tokens_to_ids(stop)]
    renderer = PromptRenderer(DataConfig(**config), tokenizer, stop_ids)
    return Parts(tokenizer, ReplyRenderer(renderer, tokenizer, stop_ids, list(tools)), list(tools))


USERS = [[user("r")], [user("é\n"), user("u")]]
RESULTS = [[result("5")], [result("6"), result("7 <é>")], [user("v")]]
TOOL_TURN = '<tool_call>\n{"name": "look"}\n</tool_call>'
APPENDS = {
    "Qwen2.5, a user": (templates.QWEN2_5, [SYSTEM, USER], (), USERS),
    "Qwen2.5, tools": (templates.QWEN2_5, [USER], TOOLS, RESULTS),
    "Qwen3, a user": (templates.QWEN3, [USER], (), USERS),
    "Qwen3, tools": (templates.QWEN3, [SYSTEM, USER], TOOLS, RESULTS),
    "ChatML": (templates.CHATML, [SYSTEM, USER], (), USERS),
    "ChatML, tools without schemas": (templates.CHATML, [USER], (), RESULTS),
    "Llama 3": (templates.LLAMA3, [SYSTEM, USER], (), [*USERS, *RESULTS[:1]]),
    "Mistral": (templates.MISTRAL, [USER], (), USERS),
    "Mistral, tools": (templates.MISTRAL, [USER], TOOLS, RESULTS[:2]),
    "Gemma": (templates.GEMMA, [USER], (), USERS),
    "a conversation": (templates.QWEN2_5, [USER, {"role": "assistant", "content": "a"}, USER], (), USERS),
}


@pytest.mark.parametrize(("template", "prompt", "tools", "replies"), APPENDS.values(), ids=APPENDS)
def test_the_pieces_add_up_to_the_whole_conversation(template, prompt, tools, replies):
    of = parts(template, tools)
    turns = ["a", TOOL_TURN, " no blanks lost ", "z"][: len(replies) + 1]
    turns = [turn.strip() if template in (templates.LLAMA3, templates.GEMMA) else turn for turn in turns]
    messages = list(prompt)
    for turn, reply in zip(turns, [*replies, []], strict=False):
        messages += [{"role": "assistant", "content": turn}, *reply]
    # Mistral's begins a turn with a blank.
    turns_written = [f" {turn}" for turn in turns] if template == templates.MISTRAL else turns
    whole = of.whole(messages)
    pieces = of.pieces(prompt, turns_written, replies)
    if template == templates.QWEN3:
        # Of the last turn alone, the template writes thoughts that it has not got.
        pieces = pieces[: len(pieces) - len(of.encode(turns[-1])) - 1]
    assert whole[: len(pieces)] == pieces
    assert len(whole) - len(pieces) < 60


def test_thoughts_stay_where_tools_follow():
    """Qwen3 keeps the thoughts of a turn that a tool answers, and opens them in the prompt of its thinking models."""
    turns = ["<think>\nt\n</think>\n\na", "<think>\nu\n</think>\n\nb"]
    messages = [
        USER,
        {"role": "assistant", "content": turns[0]},
        result("5"),
        {"role": "assistant", "content": turns[1]},
    ]
    for template, opened in ((templates.QWEN3, ""), (templates.QWEN3_OPEN, "<think>\n")):
        of = parts(template, TOOLS)
        written = [turn.removeprefix(opened) for turn in turns]
        pieces = of.pieces([USER], written, [[result("5")]])
        assert of.whole(messages)[: len(pieces)] == pieces
        assert of.renderer.notes([USER], [result("5")]) == []


@pytest.mark.parametrize("template", [templates.QWEN3, templates.QWEN3_OPEN, templates.DEEPSEEK_R1])
def test_thoughts_of_earlier_turns_stay_although_the_template_leaves_them_out(template):
    of = parts(template)
    assert of.renderer.check([USER], [user("r")]) == []
    (note,) = of.renderer.notes([USER], [user("r")])
    assert "leaves out the thoughts of earlier turns" in note
    text = of.tokenizer.decode(of.renderer.reply_ids([USER], [user("r")]))
    opened = "<think>\n" if template != templates.QWEN3 else ""
    begin = (
        "<|User|>r<|Assistant|>"
        if template == templates.DEEPSEEK_R1
        else "\n<|im_start|>user\nr<|im_end|>\n<|im_start|>assistant\n"
    )
    assert text == begin + opened


PROMPT_CHANGES = "writes the prompt differently once a reply follows"
REFUSED = {
    "the system prompt moves": (templates.MISTRAL, [SYSTEM, USER], (), user("r"), PROMPT_CHANGES),
    "the tools move": (templates.MISTRAL, [USER], TOOLS, user("r"), PROMPT_CHANGES),
    "messages are numbered": (templates.NUMBERED, [USER], (), user("r"), r"'<1>q<\|im_end\|>.* became '<3>"),
    "no system role": (templates.GEMMA, [SYSTEM, USER], (), user("r"), "System role not supported"),
    "results are left out": (templates.DEEPSEEK_R1, [USER], (), result("5"), "differently|does not write"),
    "an id is missing": (templates.MISTRAL, [USER], (), {"role": "tool", "content": "5"}, "length 9"),
    "no schemas": (templates.CHATML, [USER], TOOLS, result("5"), "leaves out the tools look"),
}


@pytest.mark.parametrize(("template", "prompt", "tools", "reply", "match"), REFUSED.values(), ids=REFUSED)
def test_a_template_that_rewrites_is_refused(template, prompt, tools, reply, match):
    of = parts(template, tools)
    with pytest.raises(ValueError, match=match):
        of.renderer.prompt_ids(prompt)
        of.renderer.reply_ids(prompt, [reply])


def test_white_space_that_changes_is_noted():
    of = parts(templates.HERMES, TOOLS)
    assert "<tool_response>\n5\n</tool_response><|im_end|>" in of.tokenizer.decode(
        of.renderer.reply_ids([USER], [result("5")])
    )
    (note,) = of.renderer.notes([USER], [result("5")])
    assert "writes white space differently" in note


def test_a_turn_that_ends_by_no_stop_token_is_refused():
    of = parts(templates.CHATML, stop="<other>")
    of.tokenizer.eos_token = "<other>"
    of = Parts(
        of.tokenizer,
        ReplyRenderer(PromptRenderer(DataConfig(), of.tokenizer), of.tokenizer, [of.tokenizer.eos_token_id]),
        [],
    )
    with pytest.raises(
        RenderingError, match=r"ends a turn with '<\|im_end\|>.*eos_token_id in generation_config"
    ):
        of.renderer.reply_ids([USER], [user("r")])


def test_any_stop_token_ends_a_turn():
    """The policy may end its turn by another token than the template; the reply follows either."""
    of = parts(templates.CHATML)
    tokenizer = of.tokenizer
    stops = sorted([tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<other>")], reverse=True)
    tokenizer.eos_token = "<other>"
    other = ReplyRenderer(PromptRenderer(DataConfig(), tokenizer, stops), tokenizer, stops)
    assert other.reply_ids([USER], [user("r")]) == of.renderer.reply_ids([USER], [user("r")])


@pytest.mark.parametrize(
    ("template", "choice"), [(None, "auto"), (None, "never"), (templates.CHATML, "never")]
)
def test_texts_are_joined_without_a_template(template, choice):
    of = parts(template, chat_template=choice)
    assert of.tokenizer.decode(of.renderer.prompt_ids([SYSTEM, USER])) == "s\nq"
    assert of.tokenizer.decode(of.renderer.reply_ids([USER], [user("r"), result("5")])) == "r\n5"
    assert of.renderer.notes([USER], [user("r")]) == []
