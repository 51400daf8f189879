"""White space, punctuation and special tokens format; digits, letters, operators and parts of characters do not."""

import numpy as np
import pytest

from megatron_prime.training.health.format_tokens import FormatTokens
from tests.support.tokenizers import byte_tokenizer, word_tokenizer

WORDS = {
    "12": False,
    "so": False,
    "+": False,
    "-": False,
    "=": False,
    "$": False,
    "3.5": False,
    "/": False,
} | {
    ".": True,
    "...": True,
    "(": True,
    "##": True,
    "“": True,
    "<eos>": True,
}


class CountingDecoder:
    """Counts the tokens that a tokenizer decodes."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.num_decoded = 0

    def decode(self, token_ids, *, skip_special_tokens):
        self.num_decoded += len(token_ids)
        return self.tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)


@pytest.mark.parametrize("word", WORDS)
def test_a_token_formats_if_its_text_says_nothing(word):
    tokenizer = word_tokenizer([each for each in WORDS if each != "<eos>"])
    (found,) = FormatTokens(tokenizer).mask([[tokenizer.convert_tokens_to_ids(word)]])
    assert found.tolist() == [WORDS[word]]


def test_the_mask_has_the_shape_of_the_batch_and_every_token_is_decoded_once():
    tokenizer = byte_tokenizer()
    texts = ["a b.\n", "", "7 + 3 = 10;", "é"]
    responses = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    responses[2].append(tokenizer.eos_token_id)
    decoder = CountingDecoder(tokenizer)
    formats = FormatTokens(decoder)
    expected = np.zeros((4, 12), dtype=bool)
    expected[0, :5] = [False, True, False, True, True]
    expected[2] = [False, True, False, True, False, True, False, True, False, False, True, True]
    np.testing.assert_array_equal(formats.mask(responses), expected)
    num_decoded = decoder.num_decoded
    assert num_decoded == len({token for response in responses for token in response})
    np.testing.assert_array_equal(formats.mask(responses[::-1]), expected[::-1])
    assert decoder.num_decoded == num_decoded


def test_no_responses_have_no_mask():
    assert FormatTokens(byte_tokenizer()).mask([[]]).shape == (1, 0)
