"""Errors that mean that another process of the job is gone or does not answer, and the exit code for them.

The survivors of a dead node see broken connections and missed deadlines. The job's script restarts a job whose ranks
end with EXIT_CODE, and gives up one whose ranks end with an error of their own.
"""

import torch.distributed as dist

EXIT_CODE = 69
"""EX_UNAVAILABLE of sysexits.h."""

NCCL_SIGNS = (
    "remote process exited",
    "network error",
    "ncclRemoteError",
    "ncclSystemError",
    "imeout",
    "aborted",
)
"""Parts of torch's messages for a communicator that lost a peer or the network, or that missed a deadline."""


def is_peer_loss(error: BaseException) -> bool:
    """Return whether a lost peer caused an error of a process group or of the job's store, or one raised from it.

    A broken connection to any other process counts as well: that process may be there after a restart. Gloo's
    errors have no type of their own, but its transport names its source file in each.
    """
    if isinstance(error, dist.DistBackendError):
        return any(sign in str(error) for sign in NCCL_SIGNS)
    if isinstance(error, dist.DistNetworkError | dist.DistStoreError | ConnectionError):
        return True
    if isinstance(error, RuntimeError) and "gloo/transport/" in str(error):
        return True
    return error.__cause__ is not None and is_peer_loss(error.__cause__)
