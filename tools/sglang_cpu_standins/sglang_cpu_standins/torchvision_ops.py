"""Declares the torchvision ops that its Python code expects, just before torchvision is imported.

Imported by every process of the environment at start, so nothing heavy is imported here before it is needed.
"""

import importlib.abc
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_libraries: list[object] = []
"""Keeps the declarations alive: they go with the object."""


class _DeclareFirst(importlib.abc.MetaPathFinder):
    """Finds nothing; notices that torchvision is about to be imported."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname == "torchvision" and not _libraries:
            _declare()
        return None


def _declare() -> None:
    import torch

    if torch.version.cuda is not None:
        return
    library = torch.library.Library("torchvision", "FRAGMENT")
    _libraries.append(library)
    for schema in SCHEMAS:
        library.define(schema)


def install() -> None:
    """Watch the imports of this process."""
    sys.meta_path.insert(0, _DeclareFirst())
