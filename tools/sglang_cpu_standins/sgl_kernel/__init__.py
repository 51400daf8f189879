"""Import-only stand-in: every attribute exists and raises NotImplementedError when it is called.

SGLang imports names from here on every platform, but on a CPU without AMX it computes with torch's own operators.
"""

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType

__version__ = "0"


class _Missing:
    """A kernel or a constant that this machine lacks; so is everything in it."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, *_args: object, **_kwargs: object) -> object:
        raise NotImplementedError(f"{self._name} needs a GPU: this is a stand-in on a machine without one")

    def __getattr__(self, name: str) -> object:
        return _attribute(self._name, name)


def _attribute(owner: str, name: str) -> object:
    if name.startswith("__"):
        raise AttributeError(f"{owner!r} has no attribute {name!r}")
    return _Missing(f"{owner}.{name}")


class _Submodules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Makes any submodule of sgl_kernel, of any depth, a module like this one."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not fullname.startswith(f"{__name__}."):
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return ModuleType(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        module.__getattr__ = lambda name: _attribute(module.__name__, name)  # type: ignore[method-assign]


def __getattr__(name: str) -> object:
    return _attribute(__name__, name)


sys.meta_path.append(_Submodules())
