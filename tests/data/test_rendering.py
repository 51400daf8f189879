import datetime

import pytest
from tokenizers.processors import TemplateProcessing

from megatron_prime.config.tables.data import DataConfig
from megatron_prime.data.rendering import PromptRenderer
from tests.support.tokenizers import CHAT_TEMPLATE, byte_tokenizer, word_tokenizer

USER = [{"role": "user", "content": "q"}]
WITH_SYSTEM = [{"role": "system", "content": "own"}, *USER]


def render(prompt, is_question=False, template=CHAT_TEMPLATE, **config):
    return PromptRenderer(DataConfig(**config), byte_tokenizer(template)).render(prompt, is_question).text


@pytest.mark.parametrize(
    ("prompt", "config", "text"),
    [
        ("q", {}, "q"),
        ("q", {"instruction": "Box it."}, "q\n\nBox it."),
        ("q", {"system_prompt": "s"}, "<|system|>s<|user|>q<|assistant|>"),
        (USER, {"instruction": "Box it."}, "<|user|>q\n\nBox it.<|assistant|>"),
        (WITH_SYSTEM, {"system_prompt": "s"}, "<|system|>own<|user|>q<|assistant|>"),
        (USER, {"system_prompt": "s", "chat_template": "never"}, "s\nq"),
    ],
)
def test_system_prompt_and_instruction_are_added(prompt, config, text):
    assert render(prompt, **config) == text


def test_a_question_becomes_a_message_if_there_is_a_template():
    assert render("q", is_question=True) == "<|user|>q<|assistant|>"
    assert render("q", is_question=True, template=None) == "q"
    assert render("q", is_question=True, chat_template="never") == "q"


def test_a_template_file_replaces_the_tokenizers_template(tmp_path):
    path = tmp_path / "chat.jinja"
    path.write_text("{% for m in messages %}[{{ m['content'] }}]{% endfor %}>")
    assert render(USER, template=None, chat_template_file=path) == "[q]>"
    assert render(WITH_SYSTEM, chat_template_file=path) == "[own][q]>"
    with pytest.raises(ValueError, match=r"chat_template_file = .*none\.jinja cannot be read"):
        render(USER, chat_template_file=tmp_path / "none.jinja")
    path.write_text("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(ValueError, match="roles must alternate"):
        render(USER, chat_template_file=path)


def test_the_default_of_several_templates_is_used():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = {"default": CHAT_TEMPLATE, "tool_use": "none"}
    assert PromptRenderer(DataConfig(), tokenizer).render(USER, False).text == "<|user|>q<|assistant|>"


def test_a_byte_order_mark_is_no_part_of_a_template(tmp_path):
    path = tmp_path / "chat.jinja"
    path.write_bytes(b"\xef\xbb\xbf{{ messages[0]['content'] }}>")
    assert render(USER, chat_template_file=path) == "q>"


def test_messages_without_a_template_are_rejected():
    with pytest.raises(ValueError, match=r"no chat template .*data\.chat_template_file"):
        render(USER, template=None)


def test_batched_tokenization_equals_single_tokenization():
    tokenizer = byte_tokenizer(CHAT_TEMPLATE)
    renderer = PromptRenderer(DataConfig(), tokenizer)
    prompts = [renderer.render(prompt, False) for prompt in ("plain é", USER, "", WITH_SYSTEM, "x" * 50)]
    assert renderer.tokenize(prompts) == [
        tokenizer.encode(prompt.text, add_special_tokens=not prompt.has_special_tokens) for prompt in prompts
    ]


DATED = {
    "plain": (
        "{{ strftime_now('%d %b %Y') }}|{% for m in messages %}{{ m['content'] }}{% endfor %}",
        "{date}|q",
    ),
    "guarded": (
        "\n  {%- if strftime_now is defined %}{% set day = strftime_now(\"%d %b %Y\") %}{% else %}{% set day = 'no' %}"
        "{% endif %}\n\n {{ messages[0]['content'] ~ day }}",
        "\n q{date}",
    ),
    "format in a variable": (
        "{% set f = '%d %b %Y' %}{{ strftime_now(f) }}{{ messages[0]['content'] }}",
        "{date}q",
    ),
    "in a macro": (
        "{% macro head() %}<{{ strftime_now('%d %b %Y') }}>{% endmacro %}{{ head() }}{{ messages[0]['content'] }}",
        "<{date}>q",
    ),
    "white space before": (
        "\n\n  {% if true %}a{% endif %}{{ strftime_now('%d %b %Y') }}{{ messages[0]['content'] }}",
        "\n\na{date}q",
    ),
    "after an apostrophe": (
        "{{ \"Today's Date: \" + strftime_now('%d %b %Y') + \".\" }}|{{ messages[0]['content'] }}",
        "Today's Date: {date}.|q",
    ),
    "after another text on the line": (
        "{% if messages[0]['role'] == 'user' %}{{ strftime_now('%d %b %Y') }}{% endif %}q",
        "{date}q",
    ),
    "without a date": ("\n  {{ messages[0]['content'] }}", "\n  q"),
}


@pytest.mark.parametrize("kind", DATED)
def test_templates_that_write_the_date_write_the_configured_one(kind):
    template, text = DATED[kind]
    assert render(USER, template=template, date="2026-01-31") == text.replace("{date}", "31 Jan 2026")
    today = f"{datetime.date.today():%d %b %Y}"
    assert render(USER, template=template) == text.replace("{date}", today)


def test_a_date_whose_format_is_calculated_is_refused_rather_than_todays():
    with pytest.raises(ValueError, match="this format of a date is no constant of the template: %Y-%m"):
        render(USER, template="{{ strftime_now('%Y' ~ '-%m') }}", date="2026-01-31")


@pytest.mark.parametrize(
    ("form", "kept"),
    [
        ("$A", []),
        ("$A <eos>", []),
        ("<pad> $A", ["<pad>"]),
        ("<pad> $A <eos>", ["<pad>"]),
        ("$A <eos> <pad>", []),
    ],
)
def test_tokens_that_a_tokenizer_puts_behind_texts_are_left_out_of_prompts(form, kept):
    tokenizer = byte_tokenizer(CHAT_TEMPLATE)
    tokens = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("<eos>", "<pad>")]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=form, special_tokens=tokens)
    renderer = PromptRenderer(DataConfig(), tokenizer)
    plain, empty, chat = renderer.tokenize([renderer.render(prompt, False) for prompt in ("q?", "", USER)])
    assert tokenizer.convert_ids_to_tokens(plain) == [*kept, "q", "?"]
    assert tokenizer.convert_ids_to_tokens(empty) == kept
    assert tokenizer.decode(chat) == "<|user|>q<|assistant|>"
    assert bool(renderer.log_lines()) == (not form.endswith("$A"))


def test_a_tokenizer_that_knows_few_words_needs_no_others():
    tokenizer = word_tokenizer(["one", "two"])
    for form, appends in (("$A", False), ("$A <eos>", True)):
        if appends:
            post_processor = TemplateProcessing(single=form, special_tokens=[("<eos>", 2)])
            tokenizer.backend_tokenizer.post_processor = post_processor
        renderer = PromptRenderer(DataConfig(), tokenizer)
        prompts = [renderer.render(text, False) for text in ("one two", "two")]
        assert renderer.tokenize(prompts) == [[0, 1], [1]]
        assert bool(renderer.log_lines()) == appends
