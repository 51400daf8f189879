"""Messages of ShareGPT get roles; tests of whole prompts are in ../test_messages.py."""

import pytest

from megatron_prime.data.conversations.foreign import ROLE_OF, is_foreign, with_roles


@pytest.mark.parametrize("sender", sorted(set(ROLE_OF) - {"function_call"}))
def test_a_message_keeps_its_text_and_its_other_fields(sender):
    assert with_roles({"from": sender.upper(), "value": "a", "name": "n"}) == [
        {"role": ROLE_OF[sender], "content": "a", "name": "n"}
    ]


def test_tags_stay_where_other_text_stands_beside_them():
    value = "see <tool_response>5</tool_response>"
    assert with_roles({"from": "tool", "value": value}) == [{"role": "tool", "content": value}]
    assert with_roles({"from": "gpt", "value": "<tool_response>5</tool_response>"})[0]["content"].startswith(
        "<"
    )


def test_an_unknown_sender_is_named():
    with pytest.raises(ValueError, match="is from 'critic', but senders are system, human"):
        with_roles({"from": "critic", "value": "a"})


def test_messages_with_roles_are_not_foreign():
    assert is_foreign({"from": "human", "value": "a"})
    assert not is_foreign({"role": "user", "content": "a", "from": "x", "value": "y"})
    assert not is_foreign("from value")
