"""The base of all alarms: a condition on the last values of one metric."""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping
from typing import Any, ClassVar


class Alarm(ABC):
    """A condition on the last values of one metric."""

    judges_not_finite: ClassVar[bool] = False
    """True if values that are not finite are looked at too."""

    def __init__(self, metric: str, window: int) -> None:
        self.metric = metric
        self._window = window
        self._values: deque[float] = deque(maxlen=window)

    def read(self, metrics: Mapping[str, float]) -> float | None:
        """Return the value to look at among a step's metrics, or None."""
        return metrics.get(self.metric)

    @abstractmethod
    def look(self, value: float) -> str | None:
        """Add the next value; return why it is alarming, or None."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state that the next look depends on."""
        return {"values": list(self._values)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state."""
        self._values = deque(state["values"], maxlen=self._window)
