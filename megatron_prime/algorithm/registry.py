"""From the name in a configuration to the object that computes: estimators, PRM objectives, policy losses and ratios.

A built-in name is short for an import path, so a new object is one new file:

    advantage.estimator = "rloo"                       # megatron_prime.algorithm.estimators.rloo:Estimator
    advantage.estimator = "my_package.my_module:Mine"  # a class of the user's, found on PYTHONPATH

Every class is constructed with its configuration section. This module imports no torch: built-in names are the module
files of a package, so that a misspelt one is refused on a login node in milliseconds.
"""

import difflib
import functools
import importlib
import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast


@dataclass(frozen=True)
class Requirements:
    """Settings that a registered class requires elsewhere, declared by its attribute `requires`."""

    group: bool = False
    """At least two responses per prompt (rollout.group_size > 1)."""
    prm: bool = False
    """A PRM (prm.enabled)."""
    undiscounted_process: bool = False
    """advantage.gamma_process = 1."""
    own_credit: bool = False
    """advantage.process_credit = "own"."""
    value_differences: bool = False
    """Process rewards that are changes of a probability, as they are: advantage.process_credit = "td", nothing that
    rescales them alone, and gamma_process = gamma_outcome."""
    critic: bool = False
    """A critic (prm.loss = "value")."""
    tokens: bool = False
    """Process rewards of tokens (prm.granularity = "token")."""
    prior_scores: bool = False
    """The PRM's scores of the batch before its update, for the targets of a PRM objective. Any run can have them; they
    cost a forward pass where the update alone would do."""
    units: bool = False
    """Steps or turns (prm.granularity)."""
    turns: bool = False
    """Process rewards of turns (prm.granularity = "turn"), and so an environment."""


@dataclass(frozen=True)
class Registry:
    """The classes that one option of the configuration may name.

    The registry does not import their protocols, which need torch: whoever builds an object declares its type.
    """

    option: str
    """Key of the option, such as "advantage.estimator"; error messages begin with it."""
    package: str
    """Package whose modules are the built-in names."""
    class_name: str
    """Name of the class in each of those modules."""
    members: tuple[str, ...]
    """Attributes that every class must have."""

    def names(self) -> list[str]:
        """Return the built-in names, sorted; no module of the package is imported."""
        return _module_names(self.package)

    def load(self, spec: str) -> type[Any]:
        """Return the class that `spec`, a built-in name or an import path, stands for.

        Raises:
            ValueError: there is no such name, module or class, or the class lacks a member.
        """
        if ":" not in spec and spec not in self.names():
            near = difflib.get_close_matches(spec, self.names(), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(
                f"{self.option} = {spec!r}: known names are {', '.join(self.names())}; "
                f"a class of your own is package.module:Class{hint}"
            )
        path = spec if ":" in spec else f"{self.package}.{spec}:{self.class_name}"
        module_name, _, class_name = path.partition(":")
        try:
            found = getattr(importlib.import_module(module_name), class_name)
        except ImportError as error:
            raise ValueError(
                f"{self.option} = {spec!r}: {error}; install the module, or put its folder on PYTHONPATH"
            ) from error
        except AttributeError as error:
            raise ValueError(f"{self.option} = {spec!r}: {error}") from error
        missing = [member for member in self.members if not hasattr(found, member)]
        if missing or not callable(found):
            needed = f"a class with {', '.join(self.members)}"
            raise ValueError(
                f"{self.option} = {spec!r} must name {needed}; missing: {', '.join(missing) or 'a class'}"
            )
        return cast(type[Any], found)

    def faults(self, spec: str) -> Iterator[str]:
        """Yield why `spec` cannot be used, if it cannot. A built-in is looked up by its file, without importing it."""
        if ":" not in spec and spec in self.names():
            return
        try:
            self.load(spec)
        except ValueError as error:
            yield str(error)


@functools.cache
def _module_names(package: str) -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(importlib.import_module(package).__path__))


ESTIMATORS = Registry(
    option="advantage.estimator",
    package="megatron_prime.algorithm.estimators",
    class_name="Estimator",
    members=("requires", "outcome_advantages_B", "process_advantages_BT"),
)
PRM_OBJECTIVES = Registry(
    option="prm.loss",
    package="megatron_prime.algorithm.prm_objectives",
    class_name="Objective",
    members=("requires", "targets", "losses_B", "prefix_logits_BL"),
)
IMPORTANCE_RATIOS = Registry(
    option="policy.correction",
    package="megatron_prime.algorithm.importance_ratios",
    class_name="Ratio",
    members=("log_ratios_BT",),
)
POLICY_LOSSES = Registry(
    option="policy.loss",
    package="megatron_prime.algorithm.policy_losses",
    class_name="Loss",
    members=("token_losses_BT",),
)
