"""An environment of one's own: a maze of rooms in a row, of which one holds the treasure.

    PYTHONPATH=examples megatron-prime train run.toml environment.name=custom_environment:Maze

docs/environments.md describes the protocol.
"""

from collections.abc import Sequence

from megatron_prime.environments.protocol import Response, Row, Step
from megatron_prime.sample import ChatMessage


class Maze:
    """The policy walks left and right until it takes what lies in a room; `row.answer` is the room of the treasure."""

    def __init__(self, num_rooms: int = 5) -> None:
        self.num_rooms = num_rooms
        self.room = self.treasure = 0

    def reset(self, row: Row) -> Sequence[ChatMessage]:
        """Begin in the first room."""
        self.treasure = int(row.answer) % self.num_rooms
        rules = f"You are in the first of {self.num_rooms} rooms. Answer each time with left, right or take."
        return [*row.messages[:-1], {"role": "user", "content": f"{rules} {self.view()}"}]

    def step(self, response: Response) -> Step:
        """Do what the last word of the turn says."""
        words = response.text.lower().split()
        action = words[-1].strip(".!") if words else ""
        if action == "take":
            return Step.done(outcome=float(self.room == self.treasure), reason=f"took in room {self.room}")
        before = abs(self.room - self.treasure)
        if action in ("left", "right"):
            self.room = min(max(self.room + (1 if action == "right" else -1), 0), self.num_rooms - 1)
            # A reward of the turn: a step nearer is worth a tenth.
            return Step.reply(self.view(), reward=0.1 * (before - abs(self.room - self.treasure)))
        return Step.reply("I know left, right and take.")

    def view(self) -> str:
        """Say what the policy sees."""
        return "Something glitters here." if self.room == self.treasure else "This room is empty."
