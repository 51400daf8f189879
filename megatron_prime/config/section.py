"""The base class of all tables of the configuration, and common field types."""

import re
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

    # use_attribute_docstrings makes the string below a field its description, which error messages quote.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)
