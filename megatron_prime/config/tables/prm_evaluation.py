"""The [prm_evaluation] table: data and thresholds with which `eval-prm` evaluates a PRM."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from megatron_prime.config.section import Section, UserPath


class PRMEvaluationConfig(Section):
    """Data with which `eval-prm` evaluates the PRM, the model of prm.path against the model of reference.path."""

    responses: tuple[UserPath, ...] = ()
    """Files that `eval` wrote below run_dir/responses, for best-of-N, weighted voting and pairs within a group."""
    processbench: dict[str, UserPath] = Field(default={})
    """ProcessBench files by split, such as {gsm8k = "gsm8k.jsonl", math = "math.jsonl"}."""
    tune_on: str = "gsm8k"
    """The split on which the threshold on step scores is chosen."""
    threshold: Annotated[float, Field(gt=0, lt=1)] | None = None
    """The first step whose sigmoid(score) is below this is predicted to be wrong; default the best value on tune_on."""
    pairs: tuple[UserPath, ...] = ()
    """jsonl, parquet or csv files with columns prompt, chosen and rejected."""

    @model_validator(mode="after")
    def _check_threshold(self) -> Self:
        # As in ProcessBench, one split selects the threshold that all splits use.
        if self.processbench and self.threshold is None and self.tune_on not in self.processbench:
            raise ValueError(
                f"processbench has no split {self.tune_on!r} to choose the threshold on: add it, name another split by "
                "tune_on, or give the threshold"
            )
        return self

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        for key, paths in (("responses", self.responses), ("pairs", self.pairs)):
            # The results of a file are stored under its name without suffix.
            names = [path.stem for path in paths]
            repeated = sorted({name for name in names if names.count(name) > 1})
            if repeated:
                raise ValueError(f"{key} has several files named {', '.join(repeated)}: rename them")
        return self
