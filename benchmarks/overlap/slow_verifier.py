"""A verifier that takes its time, as a sandbox or a judge does, without using a core."""

import hashlib
import math
import os
import time

MEAN_S = float(os.environ.get("OVERLAP_VERIFIER_MEAN_S", "0.25"))


def verify(response_text: str, answer: str) -> float:
    """Return whether the first word is the answer, after an exponentially distributed time that the texts decide."""
    digest = hashlib.sha256(f"{answer}|{response_text}".encode()).digest()
    share = (int.from_bytes(digest[:6], "big") + 1) / (2**48 + 1)
    time.sleep(min(8 * MEAN_S, -MEAN_S * math.log(share)))
    return float(response_text.split()[:1] == [answer])
