"""Whether an error means that another process of the job is gone, or does not answer, rather than a fault of this one.

The survivors of a dead node see broken connections and missed deadlines. The job's script starts a job again whose
ranks end with EXIT_CODE, and gives one up whose ranks end with a fault of their own.
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
"""What torch says of a communicator that lost a peer, a network or a deadline; its other errors are of this process."""


def is_peer_loss(error: BaseException) -> bool:
    """True for an error of a process group or of the job's store that a lost peer causes, or one raised from it.

    A connection that breaks to any other process counts as well: a start later on may find it there. Gloo's errors have
    no type of their own; its transport names its source file in each.
    """
    if isinstance(error, dist.DistBackendError):
        return any(sign in str(error) for sign in NCCL_SIGNS)
    if isinstance(error, dist.DistNetworkError | dist.DistStoreError | ConnectionError):
        return True
    if isinstance(error, RuntimeError) and "gloo/transport/" in str(error):
        return True
    return error.__cause__ is not None and is_peer_loss(error.__cause__)
