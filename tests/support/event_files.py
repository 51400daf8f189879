"""Reads TensorBoard event files by TensorBoard's own reader."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray


class Point(NamedTuple):
    step: int
    value: float


class EventFiles:
    """All values of the event files of a folder, as TensorBoard takes them after purging replaced steps."""

    def __init__(self, folder: Path) -> None:
        self._events = EventAccumulator(str(folder), size_guidance={"tensors": 0})
        self._events.Reload()

    def tags(self, plugin: str = "scalars") -> list[str]:
        return list(self._events.PluginTagToContent(plugin))

    def scalars(self, tag: str) -> list[Point]:
        return [Point(step, float(value)) for step, value in self.tensors(tag)]

    def tensors(self, tag: str) -> list[tuple[int, np.ndarray]]:
        return [(event.step, make_ndarray(event.tensor_proto)) for event in self._events.Tensors(tag)]

    def texts(self, tag: str) -> list[tuple[int, str]]:
        return [(step, value.item().decode()) for step, value in self.tensors(tag)]

    def description(self, tag: str) -> str:
        return self._events.SummaryMetadata(tag).summary_description

    def content(self, plugin: str, tag: str) -> bytes:
        return self._events.PluginTagToContent(plugin)[tag]
