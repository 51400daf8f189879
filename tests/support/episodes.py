"""Environments of engine tests: episodes in the test's process that follow a script and record what they see."""

import asyncio
from dataclasses import replace

from megatron_prime.rollout.episode import EpisodeError, Reply


class ScriptedEpisode:
    def __init__(self, owner, prompt):
        self.owner = owner
        self.prompt = prompt
        self.seen = []
        """(token ids, finish reason) of each turn."""
        self.num_closed = 0

    async def step(self, token_ids, finish_reason):
        assert self.num_closed == 0
        self.seen.append((tuple(token_ids), finish_reason))
        self.owner.num_stepping += 1
        self.owner.most_stepping = max(self.owner.most_stepping, self.owner.num_stepping)
        try:
            answer = self.owner.script(self)
            return await answer if asyncio.iscoroutine(answer) else answer
        finally:
            self.owner.num_stepping -= 1

    def close(self):
        self.num_closed += 1
        self.owner.live.discard(self)


class ScriptedEnvironments:
    """Replies by `script(episode)`, a function or coroutine of the episode with the turns it has seen."""

    def __init__(self, script, prompt_of=lambda prompt: prompt, open_fault=lambda number: False):
        self.script = script
        self.prompt_of = prompt_of
        self.open_fault = open_fault
        self.episodes = []
        self.live = set()
        self.num_opened = self.num_stepping = self.most_stepping = 0

    async def open(self, prompt):
        self.num_opened += 1
        if self.open_fault(self.num_opened):
            raise EpisodeError("the environment does not start")
        episode = ScriptedEpisode(self, self.prompt_of(prompt))
        self.episodes.append(episode)
        self.live.add(episode)
        return episode


def echo(num_turns, outcome=None):
    """A script that replies with two tokens that depend on the turn, and ends after num_turns turns."""

    def script(episode):
        if len(episode.seen) == num_turns:
            return Reply(is_done=True, outcome=outcome, reason="the end")
        token_ids, _ = episode.seen[-1]
        return Reply((sum(token_ids) % 300, len(token_ids)), reward=0.25)

    return script


def told(prompt):
    """The prompt of an environment that begins with a message of its own."""
    return replace(prompt, token_ids=(*prompt.token_ids, 5, 6))
