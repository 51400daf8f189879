"""Groups of saved responses, stored compactly."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from megatron_prime.data.columns import ColumnTable, TokensColumn
from megatron_prime.types import FinishReason, Prompt, Rollout, Turn

Group = tuple[Rollout, ...]
"""The responses to one prompt that were sampled together. They have no log-probs of an engine."""


@dataclass(frozen=True, slots=True)
class SavedResponse:
    """A response of a file."""

    token_ids: Sequence[int]
    outcome: float
    """In [0, 1]."""
    turns: Sequence[Turn] = ()


class GroupTable(ColumnTable[Group]):
    """Groups in flat buffers; rollouts are built when a group is accessed."""

    def __init__(self) -> None:
        super().__init__()
        self._prompts, self._responses = TokensColumn(), TokensColumn()
        # The ends of each turn and its reply, in turn; and their rewards.
        self._turn_ends = TokensColumn()
        self._outcomes = array("d")
        # The responses of group g are the rows ends[g] to ends[g + 1].
        self._ends = array("q", [0])

    @property
    def num_responses(self) -> int:
        """Number of responses of all groups."""
        return len(self._outcomes)

    def append(self, prompt_ids: Sequence[int], responses: Sequence[SavedResponse]) -> None:
        """Add a group of at least one response."""
        self._prompts.append(prompt_ids)
        for response in responses:
            self._responses.append(response.token_ids)
            self._turn_ends.append(end for turn in response.turns for end in (turn.policy_end, turn.end))
            self._outcomes.append(response.outcome)
        self._ends.append(len(self._outcomes))
        self.groups.append("")

    def prompt_ids(self, row: int) -> tuple[int, ...]:
        """Return the tokens of the prompt of a group."""
        return self._prompts[row]

    def outcomes(self, row: int) -> Sequence[float]:
        """Return the outcomes of a group."""
        return self._outcomes[self._ends[row] : self._ends[row + 1]]

    def _record(self, row: int) -> Group:
        prompt = Prompt(row, self._prompts[row], "")
        return tuple(
            self._rollout(prompt, sample, index)
            for sample, index in enumerate(range(self._ends[row], self._ends[row + 1]))
        )

    def _rollout(self, prompt: Prompt, sample: int, index: int) -> Rollout:
        token_ids, ends = self._responses[index], self._turn_ends[index]
        return Rollout(
            prompt,
            sample,
            token_ids,
            (0.0,) * len(token_ids),
            FinishReason.STOP,
            policy_version=0,
            outcome_reward=self._outcomes[index],
            turns=tuple(map(Turn, ends[::2], ends[1::2])),
        )
