"""[prm_evaluation]: how `eval-prm` judges a PRM."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from megatron_prime.config.section import Section, UserPath


class PRMEvaluationConfig(Section):
    """What `eval-prm` judges the PRM by: prm.path against reference.path."""

    responses: tuple[UserPath, ...] = ()
    """Files that `eval` wrote below run_dir/responses: for best-of-N, weighted vote and pairs of a group."""
    processbench: dict[str, UserPath] = Field(default={})
    """ProcessBench by split: {gsm8k = "gsm8k.jsonl", math = "math.jsonl"}."""
    tune_on: str = "gsm8k"
    """The split that the threshold on step scores is chosen on."""
    threshold: Annotated[float, Field(gt=0, lt=1)] | None = None
    """A step whose sigmoid(score) is below this is the first wrong one; default: the best on tune_on."""
    pairs: tuple[UserPath, ...] = ()
    """jsonl, parquet or csv files of prompt, chosen, rejected."""

    @model_validator(mode="after")
    def _check_threshold(self) -> Self:
        if self.processbench and self.threshold is None and self.tune_on not in self.processbench:
            raise ValueError(
                f"processbench has no split {self.tune_on!r} to choose the threshold on: add it, name another split by "
                "tune_on, or give the threshold"
            )
        return self
