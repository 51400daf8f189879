import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_prime.data.steps import step_ids, step_spans
from megatron_prime.data.whole_spans import whole_spans
from tests.support.tokenizers import byte_tokenizer, word_tokenizer

EOS = 256


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("First we add. Then we stop.", ["First we add. ", "Then we stop."]),
        ("Line one\nline two\n\nline three", ["Line one\n", "line two\n\n", "line three"]),
        ("Pi is 3.14 here. Good!\nIs it? Yes.", ["Pi is 3.14 here. ", "Good!\n", "Is it? ", "Yes."]),
        ("  \n lead. And on", ["  \n lead. ", "And on"]),
        ("no end", ["no end"]),
        ("Step 3. We add. Done.", ["Step 3. We add. ", "Done."]),
        ("1. First this. 2. Then that.", ["1. First this. ", "2. Then that."]),
        ("**Step 2:**\nWe add.\nStop", ["**Step 2:**\nWe add.\n", "Stop"]),
        ("(b) It holds. QED", ["(b) It holds. ", "QED"]),
        ("See Eq. 3 and e.g. Fig. 2. Next.", ["See Eq. 3 and e.g. Fig. 2. ", "Next."]),
        ("So $f(x) = 2.\\ A$ holds. Yes.", ["So $f(x) = 2.\\ A$ holds. ", "Yes."]),
        ("Let $x = 1. Y = 2$. Then stop.", ["Let $x = 1. Y = 2$. ", "Then stop."]),
        ("It costs $5. Then $6. End.", ["It costs $5. ", "Then $6. ", "End."]),
        ("We get\n\\[\na. B\n\n= c\n\\]\nDone.", ["We get\n", "\\[\na. B\n\n= c\n\\]\n", "Done."]),
        (
            "\\begin{align}\nx &= 1. \\\\\nY &= 2\n\\end{align}\nDone.",
            ["\\begin{align}\nx &= 1. \\\\\nY &= 2\n\\end{align}\n", "Done."],
        ),
        (
            "Code:\n```python\na = 1. \nB = 2\n\nprint(a)\n```\nDone. Ok.",
            ["Code:\n", "```python\na = 1. \nB = 2\n\nprint(a)\n```\n", "Done. ", "Ok."],
        ),
        ("Cut:\n```\na. B\nc", ["Cut:\n", "```\na. B\nc"]),
        ("Open \\[ we. Yes\nz", ["Open \\[ we. ", "Yes\n", "z"]),
        ("\n\n", ["\n\n"]),
        ("", []),
    ],
)
def test_steps_are_lines_and_sentences(text, steps):
    assert [text[start:end] for start, end in step_spans(text)] == steps


def steps_by_bytes(text):
    """Return the step of every byte: the step of its character, which is complete at its last byte."""
    step_of_character = [
        number for number, (start, end) in enumerate(step_spans(text)) for _ in range(start, end)
    ]
    return [step for step, character in zip(step_of_character, text, strict=True) for _ in character.encode()]


@pytest.mark.parametrize(
    "text",
    [
        "First. Then.\nEnd",
        "Größe: 5 €. Dann weiter.\nπ ≈ 3.14. 次の行\n🙂 ok. 🙂🙂 Done.",
        "one step only",
        "a\nb\nc\nd",
    ],
)
def test_multi_byte_characters_keep_their_step(text):
    tokenizer = byte_tokenizer()
    response_ids = tokenizer.encode(text)
    assert len(response_ids) == len(text.encode())
    assert step_ids(tokenizer, response_ids) == steps_by_bytes(text)


def test_end_of_sequence_belongs_to_the_last_step():
    tokenizer = byte_tokenizer()
    ids = step_ids(tokenizer, [*tokenizer.encode("One. Two."), EOS])
    assert ids == [0] * 5 + [1] * 4 + [1]


def test_a_response_truncated_inside_a_character_is_covered():
    tokenizer = byte_tokenizer()
    ids = step_ids(tokenizer, tokenizer.encode("One. 🙂")[:-2])
    assert len(ids) == 7
    assert ids[:5] == [0] * 5
    assert ids == sorted(ids)


def test_invalid_bytes_neither_stall_nor_crash():
    tokenizer = byte_tokenizer()
    bad = tokenizer.encode("🙂")[:1] * 9
    ids = step_ids(tokenizer, [*tokenizer.encode("One. "), *bad, *tokenizer.encode(" end.\nTwo.")])
    assert len(ids) == 5 + 9 + 10
    assert ids == sorted(ids)
    assert ids[-1] == ids[4] + 2


def test_a_leading_space_belongs_to_the_step_of_its_word():
    tokenizer = word_tokenizer(["We", "add.", "Then", "stop."])
    assert step_ids(tokenizer, tokenizer.encode("We add. Then stop.")) == [0, 0, 1, 1]


def test_ids_have_no_gaps_if_one_token_spans_several_steps():
    class Chunks:
        pieces = ("One. Two. Three", " end.\n", "Four.")

        def decode(self, token_ids, *, skip_special_tokens):
            return "".join(self.pieces[token] for token in token_ids)

    assert step_ids(Chunks(), [0, 1, 2]) == [0, 1, 2]


def test_no_tokens_have_no_steps_and_special_tokens_alone_have_one():
    assert step_ids(byte_tokenizer(), []) == []
    assert step_ids(byte_tokenizer(), [EOS, EOS]) == [0, 0]


PIECES = [
    "a",
    ". ",
    "A",
    "\n",
    "$",
    "$$",
    "\\[",
    "\\]",
    "\\(",
    "\\)",
    "```",
    "\\begin{x}",
    "\\end{x}",
    "3.",
    " ",
    "\\$",
]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=40).map("".join))
def test_steps_cover_any_text_and_never_start_inside_a_formula(text):
    spans = step_spans(text)
    assert "".join(text[start:end] for start, end in spans) == text
    assert all(start < end for start, end in spans)
    for start, _ in spans[1:]:
        assert not any(inside < start < end for inside, end in whole_spans(text))


@pytest.mark.parametrize(
    "piece", ["$5 ", "\\[ ", "\\begin{a} ", "\\begin{a}\\begin{a}\\end{a} ", "```\n", "Step 1. "]
)
def test_the_time_is_not_quadratic_in_the_text(piece):
    text = piece * (60_000 // len(piece))
    begin = time.process_time()
    step_spans(text)
    assert time.process_time() - begin < 20  # seconds; quadratic time would take minutes
