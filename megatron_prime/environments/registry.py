"""From the name in a configuration to the class of an environment and its tools; used in worker processes alone.

A built-in name is the file of a module in `environments/builtin/`, which has a class `Environment`; that of a
tool is a module in `environments/tools/`. Everything else is
the import path of a user's class, which is imported in worker processes and never in the trainer.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

BUILT_IN = "megatron_prime.environments.builtin"
TOOLS = "megatron_prime.environments.tools"


@dataclass(frozen=True)
class EnvironmentFactory:
    """Creates the environments of one process."""

    create: Callable[[], Any]
    tools: Callable[[], Sequence[Mapping[str, Any]]]
    """Returns the schemas of the tools."""


def environment_names() -> list[str]:
    """Return the built-in names, sorted; no module of them is imported."""
    return _module_names(BUILT_IN)


def tool_names() -> list[str]:
    """Return the built-in names of `environment.tools`, sorted; no module of them is imported."""
    return _module_names(TOOLS)


def _module_names(package: str) -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(importlib.import_module(package).__path__))


def load_object(option: str, path: str) -> Any:  # noqa: ANN401 - a class or a function
    """Return the object of an import path package.module:Name, which `option` names.

    Raises:
        ValueError: the module has no such name.
    """
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except AttributeError as error:
        raise ValueError(f"{option} = {path!r}: {error}") from error


def load_environment(options: Mapping[str, Any]) -> EnvironmentFactory:
    """Import the environment that the options name.

    Args:
        options: name, settings, tools and timeout_s of EnvironmentConfig, and as `code` the table [reward.code].

    Raises:
        ValueError: there is no such name, it is no class with `reset` and `step`, or the class does not take the
            settings.
    """
    name, settings = options["name"], dict(options["settings"])
    path = name if ":" in name else f"{BUILT_IN}.{name}:Environment"
    found = load_object("environment.name", path)
    missing = [member for member in ("reset", "step") if not callable(getattr(found, member, None))]
    if missing or not inspect.isclass(found):
        raise ValueError(
            f"environment.name = {name!r} must be a class with the methods reset and step; missing: "
            f"{', '.join(missing) or 'a class'}"
        )
    if name == "tools":
        settings |= {key: options[key] for key in ("tools", "code", "timeout_s")}
    try:
        inspect.signature(found).bind(**settings)
    except TypeError as error:
        raise ValueError(
            f"environment.settings = {dict(options['settings'])}: {name} does not take them: {error}"
        ) from error

    def create() -> Any:  # noqa: ANN401 - an environment
        return found(**settings)

    def tools() -> Sequence[Mapping[str, Any]]:
        schemas = getattr(create(), "tools", ())
        for schema in schemas:
            check_schema(name, schema)
        return schemas

    return EnvironmentFactory(create, tools)


def check_schema(name: str, schema: object) -> None:
    """Raise ValueError unless a value is the schema of a function, as chat templates take it."""
    function = schema.get("function") if isinstance(schema, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise ValueError(
            f"{name} has the tool {schema!r:.80}; a schema looks like "
            '{"type": "function", "function": {"name": ..., "description": ..., "parameters": {...}}}'
        )
