"""The base class of all tables of the configuration, and common field types."""

import ast
import inspect
import re
import textwrap
from itertools import pairwise
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
UnitInterval = Annotated[float, Field(ge=0, le=1)]


def _check_name_or_path(value: str) -> str:
    if not re.fullmatch(r"\w+|[A-Za-z_][\w.]*:[A-Za-z_]\w*", value):
        raise ValueError(f"{value!r} is neither a name nor an import path of the form package.module:Class")
    return value


NameOrPath = Annotated[str, AfterValidator(_check_name_or_path)]
"""The name of a built-in object, or "package.module:Class"; preflight/algorithm.py checks that it exists."""

UserPath = Annotated[Path, AfterValidator(Path.expanduser)]
"""A path, relative to the working directory of the command; a leading ~ is the home folder."""


class Section(BaseModel):
    """A frozen table of the configuration that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def documentation(cls) -> dict[str, str]:
        """Return the documentation of each field: the string below it, in this class or in one that it extends."""
        # Pydantic's use_attribute_docstrings would read the sources of all tables at every start of the command.
        texts: dict[str, str] = {}
        for base in reversed(cls.__mro__[: cls.__mro__.index(Section)]):
            (definition,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
            assert isinstance(definition, ast.ClassDef)
            for field, below in pairwise(definition.body):
                if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                    text = below.value if isinstance(below, ast.Expr) else None
                    if isinstance(text, ast.Constant) and isinstance(text.value, str):
                        texts[field.target.id] = inspect.cleandoc(text.value)
        return texts
