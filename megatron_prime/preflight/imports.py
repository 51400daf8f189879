"""Check import paths without importing what they name, which may take long and is a user's code."""

import importlib.machinery
import importlib.util
import re
import sys
from collections.abc import Iterator

_IMPORT_PATH = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


def import_faults(key: str, path: str, kind: str) -> Iterator[str]:
    """Yield why the option `key` cannot have the import path of a `kind` (function, Class), if it cannot."""
    if not _IMPORT_PATH.fullmatch(path):
        yield f"{key} = {path!r} is not of the form package.module:{kind}"
        return
    module = path.partition(":")[0]
    if not _exists(module):
        yield f"{key} = {path!r}: there is no module {module}; install it, or put its folder on PYTHONPATH"


def _exists(module: str) -> bool:
    if module in sys.modules:
        return True
    top, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return False
    # `find_spec` of a dotted name would import the packages around it.
    for name in rest:
        if spec is None or spec.submodule_search_locations is None:
            return False
        full_name = f"{spec.name}.{name}"
        spec = importlib.machinery.PathFinder.find_spec(full_name, list(spec.submodule_search_locations))
    return spec is not None
