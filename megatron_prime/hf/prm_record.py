"""The file that a PRM's HF folder carries: with which reference and settings its scores have a meaning.

The score of an implicit PRM is a log-ratio of two models, of which the folder holds one. With another reference than in
its training it is the log-ratio of two unrelated models.
"""

import json
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from megatron_prime.hf.config_json import ModelFolderError
from megatron_prime.hf.identity import model_identity

FILE = "implicit_prm.json"
FORMAT = 1


@dataclass(frozen=True, slots=True)
class PRMRecord:
    """The training of a PRM, as far as its use depends on it."""

    reference: str
    """Folder of the reference of the log-ratio, when the PRM was trained."""
    reference_identity: dict[str, str]
    """Hashes of the reference; see `model_identity`."""
    loss: str
    beta: float
    scored_tokens: str

    def write(self, folder: Path) -> None:
        """Write the record to the HF folder of the PRM, which must exist."""
        text = json.dumps({"format": FORMAT, **asdict(self)}, indent=1)
        (folder / FILE).write_text(text + "\n", encoding="utf-8")

    @staticmethod
    def read(folder: Path) -> "PRMRecord | None":
        """Return the record of a folder; None if it has none, like that of a model that is no PRM.

        Raises:
            ModelFolderError: the file is damaged, or of another version.
        """
        try:
            values: Any = json.loads((folder / FILE).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as error:
            raise ModelFolderError(folder, f"{FILE} cannot be read: {error}") from error
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            raise ModelFolderError(folder, f"{FILE} is of another version of megatron_prime")
        try:
            record = PRMRecord(**{field.name: values[field.name] for field in fields(PRMRecord)})
        except KeyError as error:
            raise ModelFolderError(folder, f"{FILE} lacks {error}") from error
        for name, is_sound in record._sound_fields().items():
            if not is_sound:
                raise ModelFolderError(
                    folder,
                    f"{FILE} is damaged: {name} is {values[name]!r}. Copy it again from the output of train-prm",
                )
        return record

    def is_reference(self, folder: Path) -> bool:
        """Return whether a folder holds the reference, by its weights.

        Raises:
            ModelFolderError: the folder cannot be read.
        """
        identity = model_identity(folder)
        return all(identity[part] == self.reference_identity.get(part) for part in ("config.json", "weights"))

    def _sound_fields(self) -> dict[str, bool]:
        """Return for each field whether its value is one that `write` writes."""
        return {
            "reference": isinstance(self.reference, str),
            "reference_identity": isinstance(self.reference_identity, dict),
            "loss": isinstance(self.loss, str),
            # isinstance would accept true and false, which are subclasses of int.
            "beta": type(self.beta) in (int, float) and math.isfinite(self.beta),
            "scored_tokens": isinstance(self.scored_tokens, str),
        }
