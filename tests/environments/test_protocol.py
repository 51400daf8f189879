"""The records that an environment returns."""

from megatron_prime.environments.protocol import Step


def test_a_text_is_a_message_of_the_user():
    assert Step.reply("higher").messages == ({"role": "user", "content": "higher"},)
    tool = {"role": "tool", "content": "42"}
    assert Step.reply(tool).messages == Step.reply([tool]).messages == (tool,)
    assert not Step.reply("higher").is_done


def test_the_end_has_no_messages():
    assert Step.done() == Step(is_done=True)
    assert Step.done(0.5, reason="half") == Step((), True, 0.0, 0.5, "half")
