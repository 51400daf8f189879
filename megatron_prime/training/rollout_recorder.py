"""Recording of sampled groups for the rollout log: which ones, and everything that a step computes of their tokens.

Nothing is computed for the log alone: it gets the tensors that a step has anyway, of the chosen responses, in one copy
from the device. It uses no random numbers, so that a run has equal results with and without it.
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace

import torch

from megatron_prime.config.tables.observability.rollout_log import RolloutLogConfig
from megatron_prime.observability.rollout_log.folder import RolloutLog
from megatron_prime.observability.rollout_log.schema import FileInfo
from megatron_prime.parallel.platform import move_together
from megatron_prime.rollout.sampled_groups import SampledGroup, chosen_groups
from megatron_prime.training.rollout_rows import Figures, rows_of_groups
from megatron_prime.training.trainer import TrainedBatch
from megatron_prime.types import Decoder


@dataclass
class _Pending:
    """A step that has not been written yet."""

    info: FileInfo
    groups: list[SampledGroup]
    values: "_Values | None" = None


@dataclass(frozen=True)
class _Values:
    """Values of the tokens of some responses, as a step has computed them."""

    names: list[str]
    """The columns, of which the first is the mask."""
    values_NRT: torch.Tensor
    """On the host; the copy from the device may not have ended yet."""
    places: list[tuple[tuple[int, int], int]]
    """Position of the group in the log and sample, and number of tokens, of each response."""

    def by_place(self) -> dict[tuple[int, int], Figures]:
        """Return the values of each response; the copy must have ended."""
        figures: dict[tuple[int, int], Figures] = {}
        for index, (place, length) in enumerate(self.places):
            values = self.values_NRT[:, index, :length].numpy()
            figures[place] = dict(zip(self.names, values, strict=True)) | {"mask": values[0] > 0}
        return figures


def _columns_of(trained: TrainedBatch) -> dict[str, torch.Tensor | None]:
    """Return the columns of the log with a value for each token; None for what the run does not compute."""
    return {
        "policy_logprobs": trained.old.logprobs_BT,
        "prm_logprobs": trained.prm_logprobs_BT,
        "ref_logprobs": trained.ref_logprobs_BT,
        "process_rewards": trained.process_rewards_BT,
        "advantages": trained.advantages_BT,
        "entropy": trained.old.entropy_BT,
    }


class RolloutRecorder:
    """Takes what a step samples and computes, and writes the file of the step. Only rank 0 has one.

    A thread writes, while the next step samples: at most one file is on its way.

    Args:
        settings: groups to log, and steps to log.
        log: the files.
        tokenizer: decodes prompts and responses; for the recorder alone, because it is used from its thread.
        info: description of all files; the recorder fills in the step, its groups and its policy version.
    """

    def __init__(
        self, settings: RolloutLogConfig, log: RolloutLog, tokenizer: Decoder, info: FileInfo
    ) -> None:
        self._settings = settings
        self._log = log
        self._tokenizer = tokenizer
        self._info = info
        self._pending: _Pending | None = None
        self._thread = ThreadPoolExecutor(1, "rollout-log")
        self._writing: Future[None] | None = None

    def observe(self, step_index: int, groups: Sequence[SampledGroup]) -> None:
        """Choose among the groups of a step, which is numbered from 0 here and from 1 in the log; a GroupObserver."""
        settings, step = self._settings, step_index + 1
        self._pending = None
        if settings.groups_per_step == 0 or (step != 1 and step % settings.every_steps):
            return
        most = len(groups) if settings.groups_per_step == "all" else settings.groups_per_step
        chosen = chosen_groups(groups, most)
        versions = [rollout.policy_version for group in groups for rollout in group.rollouts]
        info = replace(
            self._info,
            step=step,
            policy_version=min(versions, default=0),
            num_groups_sampled=len(groups),
            num_groups=len(chosen),
        )
        self._pending = _Pending(info, chosen)

    def note(self, step: int, trained: TrainedBatch) -> None:
        """Start copying the values of the chosen responses to the host; a BatchObserver."""
        if self._pending is None or self._pending.info.step != step:
            return
        batch = trained.batch
        places = [
            (group.batch_index * len(group.rollouts) + sample, (number, sample), len(rollout.response_ids))
            for number, group in enumerate(self._pending.groups)
            if group.batch_index is not None
            for sample, rollout in enumerate(group.rollouts)
        ]
        if not places:
            return
        mask_BT = batch.policy_mask_BT
        (rows_R,) = move_together([torch.tensor([row for row, _, _ in places])], mask_BT.device)
        longest = max(length for _, _, length in places)
        mask_RT = mask_BT[rows_R, :longest]
        if batch.is_trained_B is not None:
            mask_RT = mask_RT & batch.is_trained_B[rows_R, None]
        computed = {name: value_BT for name, value_BT in _columns_of(trained).items() if value_BT is not None}
        parts = [mask_RT.float(), *(value_BT[rows_R, :longest].float() for value_BT in computed.values())]
        # One copy, for which the host does not wait here: it will have ended when the file is written.
        values_NRT = torch.stack(parts).to("cpu", non_blocking=True)
        self._pending.values = _Values(["mask", *computed], values_NRT, [place[1:] for place in places])

    def write(self) -> None:
        """Begin to write the file of the last step, if it is one to log, after that of the step before is written.

        Raises:
            OSError: the file before cannot be written, and is left out.
        """
        pending, self._pending = self._pending, None
        if pending is None:
            return
        before = self._writing
        if before is not None:
            wait([before])
        self._writing = self._thread.submit(self._write, pending)
        if before is not None:
            before.result()

    def finish(self) -> None:
        """Wait until the file that is being written is on disk.

        Raises:
            OSError: it cannot be written, and is left out.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def close(self) -> None:
        """Let the file that is being written be completed, and end the thread. `finish` alone reports its errors."""
        self._thread.shutdown()

    def _write(self, pending: _Pending) -> None:
        figures = {} if pending.values is None else pending.values.by_place()
        self._log.log(pending.info, rows_of_groups(pending.groups, self._tokenizer, figures))
