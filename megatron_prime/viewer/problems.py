"""Problems that changed between wrong and right over the logged steps."""

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from megatron_prime.viewer.logged_step import LoggedStep

HALF = 0.5
"""Mean outcome reward of a group above which its problem counts as right at that step, and below which as wrong."""
CHANGES = ("learned", "forgotten", "unstable")


@dataclass(frozen=True)
class Sighting:
    """A problem in one logged step."""

    step: int
    group: int
    accuracy: float
    """Mean outcome reward of the group."""
    num_responses: int


@dataclass(frozen=True)
class Problem:
    """A problem that was logged at several steps."""

    source: str
    prompt_index: int
    prompt: str
    ground_truth: str
    sightings: tuple[Sighting, ...]
    """In the order of the steps."""

    @property
    def change(self) -> str:
        """One of CHANGES: wrong to right, right to wrong, or more than one change; "" for none."""
        # A group that is half right has no side, so that one response more or less is not yet a change.
        sides = [sighting.accuracy > HALF for sighting in self.sightings if sighting.accuracy != HALF]
        turns = sum(before != after for before, after in itertools.pairwise(sides))
        if turns > 1:
            return "unstable"
        return "" if turns == 0 else "learned" if sides[-1] else "forgotten"


class ProblemHistory:
    """Collects the sightings of all problems, step by step."""

    def __init__(self) -> None:
        self._sightings: dict[tuple[str, int], list[Sighting]] = {}
        self._texts: dict[tuple[str, int], tuple[str, str]] = {}

    def add(self, step: LoggedStep) -> None:
        """Add the groups of the next logged step. Groups without a verified response are left out."""
        for key, outcomes, group in step.outcomes():
            if outcomes:
                accuracy = sum(outcomes) / len(outcomes)
                self._sightings.setdefault(key, []).append(
                    Sighting(step.info.step, group, accuracy, len(outcomes))
                )
                self._texts.setdefault(key, step.prompt_of(group))

    @property
    def num_problems(self) -> int:
        """Number of problems that were logged."""
        return len(self._sightings)

    def problems(self) -> list[Problem]:
        """Return the problems that were logged at more than one step; those with most changes first."""
        found = [
            Problem(*key, *self._texts[key], tuple(sightings))
            for key, sightings in self._sightings.items()
            if len({sighting.step for sighting in sightings}) > 1
        ]
        return sorted(
            found, key=lambda problem: (-len(problem.sightings), problem.source, problem.prompt_index)
        )


def by_change(problems: Iterable[Problem]) -> Mapping[str, list[Problem]]:
    """Return the problems of each of CHANGES; those that did not change are left out."""
    groups: dict[str, list[Problem]] = {change: [] for change in CHANGES}
    for problem in problems:
        if problem.change:
            groups[problem.change].append(problem)
    return groups
