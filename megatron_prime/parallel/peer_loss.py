"""Detection of errors caused by another process of the job that is gone or does not answer, and their exit code.

The surviving ranks of a lost node see broken connections and timeouts. The job script restarts a job whose ranks exit
with EXIT_CODE, and does not restart one whose ranks exit with an error of their own.
"""

import torch.distributed as dist

EXIT_CODE = 69
"""Exit code of a rank that lost a peer: EX_UNAVAILABLE of sysexits.h."""

NCCL_SIGNS = (
    "remote process exited",
    "network error",
    "ncclRemoteError",
    "ncclSystemError",
    "imeout",
    "aborted",
)
"""Substrings of torch's messages about a communicator that lost a peer or the network, or that timed out."""


def is_peer_loss(error: BaseException) -> bool:
    """Return whether a lost peer caused an error, or the error that it was raised from.

    These are errors of process groups and of the job's store, and broken connections to any other process, because a
    restart may bring that process back.
    """
    if isinstance(error, dist.DistBackendError):
        return any(sign in str(error) for sign in NCCL_SIGNS)
    if isinstance(error, dist.DistNetworkError | dist.DistStoreError | ConnectionError):
        return True
    # Gloo raises plain RuntimeErrors, but its transport puts the path of its source file into every message.
    if isinstance(error, RuntimeError) and "gloo/transport/" in str(error):
        return True
    return error.__cause__ is not None and is_peer_loss(error.__cause__)
