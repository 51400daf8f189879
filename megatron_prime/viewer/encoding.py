"""Data as scripts that a page can load without a server: browsers refuse to fetch files, but not to run them.

A script calls `viewerData(key, value)` once. Numbers of tokens are base64 of 16-bit floats: a large step has millions
of them, and JSON would need three times the space and the time to parse.
"""

import base64
import json
from collections.abc import Sequence

import numpy as np

FLOAT16_MAX = 65504.0


def script(key: str, value: object) -> bytes:
    """Return a script that passes `value` to the page under `key`. Values that are not finite must be None already."""
    return f"viewerData({_literal(key)},{_literal(value)});\n".encode("utf-8", "backslashreplace")


def _literal(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # Older engines take these two for line ends within a string, and "<" could begin markup if a file is misused.
    return text.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029").replace("<", "\\u003c")


def float16(values: np.ndarray) -> str:
    """Return base64 of little-endian 16-bit floats; larger values become the largest, and NaN stays NaN."""
    clipped = np.clip(np.asarray(values, dtype=np.float32), -FLOAT16_MAX, FLOAT16_MAX)
    return base64.b64encode(clipped.astype("<f2").tobytes()).decode("ascii")


def uint16(values: np.ndarray) -> str:
    """Return base64 of little-endian unsigned 16-bit integers; larger values become the largest."""
    return base64.b64encode(np.minimum(values, 65535).astype("<u2").tobytes()).decode("ascii")


def int32(values: np.ndarray) -> str:
    """Return base64 of little-endian 32-bit integers."""
    return base64.b64encode(np.asarray(values).astype("<i4").tobytes()).decode("ascii")


def rounded(values: Sequence[float | None] | np.ndarray, digits: int = 5) -> list[float | None]:
    """Return values with this many significant digits; None for those that are missing or not finite."""
    return [
        None if value is None or not np.isfinite(value) else float(f"{float(value):.{digits}g}")
        for value in values
    ]
