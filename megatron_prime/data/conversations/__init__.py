"""Conversations of several turns and calls of tools.

- `tool_calls`: calls and schemas of tools in the forms that data sets have them, made one form
- `foreign`: messages in the format of ShareGPT, made messages with roles
- `demonstrations`: the turns of a demonstrated conversation as a rollout with an environment would have them
- `literal_text`: texts of others, in which the words of special tokens stay words
- `replies`: tokens of an environment's replies, as the chat template writes them
"""
