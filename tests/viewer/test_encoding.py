"""Scripts carry any text and number unharmed, and nothing in them can end a script or a line."""

import base64
import json
import math
import struct

import numpy as np
import pytest

from megatron_prime.viewer.encoding import float16, int32, rounded, script, uint16

TEXTS = (
    "</script><script>alert(1)</script>",
    "<!--<img onerror=x>",
    "a\u2028b\u2029c",
    "\\u003c\\",
    "שלום 👩‍👩‍👧",
    "\x00\x1f\r\n",
    "\udc80",
)


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_a_script_holds_one_line_without_markup_and_gives_the_text_back(text):
    line = script("a", [text]).decode()
    assert not set("<\u2028\u2029") & set(line)
    assert line.count("\n") == 1
    body = line.removeprefix('viewerData("a",').removesuffix(");\n")
    assert json.loads(body) == [text]


def test_a_number_that_is_not_finite_is_an_error_not_invalid_json():
    with pytest.raises(ValueError, match="not JSON compliant"):
        script("a", math.nan)


def test_numbers_are_little_endian():
    values = [0.0, -1.5, 65504.0, 2.0**-24]
    assert base64.b64decode(float16(np.array(values))) == struct.pack("<4e", *values)
    assert base64.b64decode(float16(np.array([1e9, -1e9]))) == struct.pack("<2e", 65504.0, -65504.0)
    assert math.isnan(struct.unpack("<e", base64.b64decode(float16(np.array([np.nan]))))[0])
    assert base64.b64decode(uint16(np.array([1, 70000]))) == struct.pack("<2H", 1, 65535)
    assert base64.b64decode(int32(np.array([1, -2]))) == struct.pack("<2i", 1, -2)


def test_rounding_keeps_significant_digits_and_drops_what_json_lacks():
    assert rounded([1 / 3, 123456.7, None, math.nan, math.inf, 0.0]) == [
        0.33333,
        123460.0,
        None,
        None,
        None,
        0.0,
    ]
