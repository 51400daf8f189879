from megatron_prime.data.text_layout import TextLayout, text_layout
from tests.support.tokenizers import byte_tokenizer, word_tokenizer


def test_tokens_and_steps_of_a_response():
    tokenizer = word_tokenizer(["We", "add.", "Then", "stop."])
    ids = [0, 1, 2, 3, tokenizer.eos_token_id]
    assert text_layout(tokenizer, ids) == TextLayout("We add. Then stop.", [2, 7, 12, 18, 18], [2, 5])


def test_a_response_without_text_is_one_step():
    tokenizer = byte_tokenizer()
    assert text_layout(tokenizer, [tokenizer.eos_token_id]) == TextLayout("", [0], [1])
