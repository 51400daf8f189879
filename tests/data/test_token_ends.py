import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from megatron_prime.data import token_ends as module
from megatron_prime.data.text_layout import text_layout
from megatron_prime.data.token_ends import decoded_lengths
from tests.support.tokenizers import byte_tokenizer, word_tokenizer

BYTES = byte_tokenizer()
EOS = BYTES.eos_token_id


def blank_tokenizer():
    """Return a tokenizer as Llama 2 has it: words begin with a blank, which the first one loses; bytes are tokens."""
    words = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581the", "\u2581cat", "s", "."]
    model = models.BPE(
        {word: index for index, word in enumerate(words)}, [], unk_token="<unk>", byte_fallback=True
    )
    tokenizer = Tokenizer(model)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", clean_up_tokenization_spaces=False
    )


def token_ends(tokenizer, ids, text):
    layout = text_layout(tokenizer, ids)
    assert layout.text == text
    return layout.token_ends


def text_of(tokenizer, ids):
    return tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize(
    "text",
    [
        "plain",
        "naïve é",
        "שלום עולם",
        "🙂",
        "a🙂b👩‍👩‍👧c",
        "漢字 and text",
        "e\u0301",
        "\x00\n\t",
        "",
        "\ufffd",
        "\ufffda",
    ],
)
def test_each_byte_ends_where_its_character_does(text):
    ids = list(text.encode())
    tokens = [BYTES.convert_tokens_to_ids(token) for token in map(_symbol, ids)]
    ends = token_ends(BYTES, [*tokens, EOS], text_of(BYTES, tokens))
    expected, done = [], 0
    for character in text:
        size = len(character.encode())
        expected += [done] * (size - 1) + [done + 1]
        done += 1
    if "\ufffd" not in text:
        assert ends == [*expected, done]
    assert ends[-1] == len(text)
    assert ends == sorted(ends)


@pytest.mark.parametrize("num_special", [1, 2, 5])
def test_special_tokens_before_a_character_are_no_part_of_it(num_special):
    ids = [EOS] * num_special + BYTES.convert_tokens_to_ids(list(map(_symbol, "🙂".encode())))
    expected = [0] * (num_special + 3) + [1]
    assert module._lengths_by_windows(BYTES, ids) == expected
    assert token_ends(BYTES, ids, "🙂") == expected


def _symbol(byte):
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return bytes_to_unicode()[byte]


@pytest.mark.parametrize(
    "tokenizer", [BYTES, blank_tokenizer(), word_tokenizer(["a", "b", "c"])], ids=("bytes", "blanks", "words")
)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_adding_up_tokens_agrees_with_decoding_windows(tokenizer, data):
    ids = data.draw(st.lists(st.integers(0, len(tokenizer) - 1), max_size=40))
    text = text_of(tokenizer, ids)
    lengths = module._lengths_by_token(tokenizer, ids, text)
    if "\ufffd" not in text:  # of bytes that are no text, the end is a matter of taste
        assert lengths is None or lengths == module._lengths_by_windows(tokenizer, ids)
    ends = token_ends(tokenizer, ids, text)
    assert len(ends) == len(ids)
    assert ends == sorted(ends)
    assert not ends or ends[-1] == len(text)


def test_words_behind_blanks_are_added_up_without_windows():
    tokenizer = blank_tokenizer()
    the, cat, s, dot, euro = 257, 258, 259, 260, [1 + byte for byte in "€".encode()]
    ids = [the, cat, s, *euro, the, dot]
    text = text_of(tokenizer, ids)
    assert text == "the cats€ the."
    assert module._lengths_by_token(tokenizer, ids, text) == [3, 7, 8, 8, 8, 9, 13, 14]


def test_a_response_that_ends_within_a_character_ends_with_its_text():
    tokens = [BYTES.convert_tokens_to_ids(_symbol(byte)) for byte in "a€".encode()[:-1]]
    text = text_of(BYTES, tokens)
    assert text == "a\ufffd"
    assert decoded_lengths(BYTES, tokens, text) == [1, 1, 1]
    assert token_ends(BYTES, tokens, text) == [1, 1, 2]


def test_a_response_without_text_ends_at_0():
    assert token_ends(BYTES, [EOS, EOS], "") == [0, 0]
    assert token_ends(BYTES, [], "") == []


class _Tidying:
    """A tokenizer that removes the blank before a full stop, and counts its calls."""

    num_calls = 0

    def decode(self, token_ids, *, skip_special_tokens):
        self.num_calls += 1
        return " ".join({0: "a", 1: ".", 2: "b"}[token] for token in token_ids).replace(" .", ".")


def test_a_tokenizer_that_tidies_up_is_followed():
    tokenizer = _Tidying()
    assert token_ends(tokenizer, [0, 1, 2, 1], "a. b.") == [1, 2, 4, 5]


def test_known_tokens_are_not_decoded_again():
    tokenizer = _Tidying()
    token_ends(tokenizer, [0, 2] * 3, "a b a b a b")
    before = tokenizer.num_calls
    token_ends(tokenizer, [0, 2] * 500, " ".join("ab" * 500))
    assert tokenizer.num_calls - before < 5
