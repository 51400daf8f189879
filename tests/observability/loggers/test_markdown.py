import math

import markdown
import pytest
from tensorboard.plugin_util import markdown_to_safe_html

from megatron_prime.observability.loggers.markdown import (
    MAX_CHARS,
    code_block,
    samples_text,
    settings_text,
    shortened,
    verdict,
    visible,
)
from megatron_prime.observability.loggers.protocol import Sample

ATTACKS = {
    "script": "<script>alert(1)</script>",
    "end of a fence": "```\n<img src=x onerror=alert(1)>\n```",
    "end of a tag": "</code></pre><h1>owned</h1>",
    "markdown": "# owned\n\n* [a](javascript:alert(1)) ![b](http://evil.example/x.png)\n\n| a |\n|---|\n| b |",
    "line ends": "a\r\n# b\rc\x0b# d\x0c# e\x85# f\u2028# g\u2029# h",
    "placeholders of the parser": "\x02klzzwxh:0000\x03 \x02amp\x03",
    "empty lines": "a\n\n\n# b\n\n<b>c</b>",
    "reference": "[a]: http://evil.example\n\n[a]",
    "tabs": "\t# a\n\t\t<b>",
    "empty": "",
}


@pytest.mark.parametrize("name", ATTACKS)
def test_text_of_a_model_cannot_leave_its_block(name):
    html = markdown_to_safe_html(f"before\n\n{code_block(ATTACKS[name])}\n\nafter")
    start, _, rest = html.partition("<pre>")
    inner, _, end = rest.partition("</pre>")
    assert (start.strip(), end.strip()) == ("<p>before</p>", "<p>after</p>") or name == "empty"
    assert "<" not in inner.removeprefix("<code>").rsplit("</code>", 1)[0]


def test_a_block_shows_the_text_as_it_is():
    html = markdown.markdown(code_block('a < b & "c"\n\n  $x^2$ *d* 😀 שלום'))
    assert html.removeprefix("<pre><code>").removesuffix("\n</code></pre>") == (
        'a &lt; b &amp; "c"\n\n  $x^2$ *d* 😀 שלום'
    )


def test_characters_that_change_the_rest_of_a_page_are_written_out():
    assert visible("a\u202eb\u2066c\x00d\x1b[31me\ud800") == ("a\\u202eb\\u2066c\\u0000d\\u001b[31me\\ud800")
    assert visible("a\r\nb\tc") == "a\nb\tc"


def test_a_long_text_is_shortened_in_its_middle():
    assert shortened("x" * MAX_CHARS) == "x" * MAX_CHARS
    short = shortened("a" * 5000 + "b" * 5000)
    assert short.startswith("a" * 1000) and short.endswith("b" * 1000) and "8000 characters left out" in short


def test_samples_name_their_verdict():
    sample = Sample("1+1=", "2", 1.0, "sums", 3, "stop", -0.25)
    text = samples_text([sample, Sample("p", "r", math.nan)])
    assert "**Response 1: outcome 1, 3 tokens, stop, process reward -0.25**" in text
    assert verdict(Sample("p", "r", math.nan)) == "verifier error, 0 tokens"
    assert "    1+1=" in text and text.count("\n---\n") == 1
    assert len(samples_text([Sample("p" * 10**6, "r" * 10**6, 0.0)] * 4)) < 20_000


def test_settings_are_json_in_a_block():
    assert settings_text({"a": {"b": "</pre>"}}) == '    {\n     "a": {\n      "b": "</pre>"\n     }\n    }'
