"""Functions that the ranks of the connectivity tests run."""

import os

from megatron_prime.parallel.connectivity import meet


def all_meet():
    reached = meet(30.0)
    return reached.hosts, reached.mb_s


def one_is_absent():
    if os.environ["RANK"] == "1":
        return None
    try:
        meet(2.0)
    except ConnectionError as error:
        return str(error)
    return "met"
