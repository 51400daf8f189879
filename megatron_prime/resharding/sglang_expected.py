"""What SGLang's own `/weights_checker` must answer for given weights: the full check of a sync, on CPU servers.

Written from SGLang's layout of fused parameters alone, and not from the receiver's code, which it checks.
"""

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable

import torch

from megatron_prime.models.hf_layouts import HFShard
from megatron_prime.models.hf_mapping import ModelShape, hf_shards
from megatron_prime.resharding.layouts import EngineLayout

_FUSED = (
    (re.compile(r"(.*)\.(q_proj|k_proj|v_proj)\.(weight|bias)"), "qkv_proj", ("q_proj", "k_proj", "v_proj")),
    (re.compile(r"(.*)\.(gate_proj|up_proj)\.(weight|bias)"), "gate_up_proj", ("gate_proj", "up_proj")),
)
_EXPERT = re.compile(r"(.*\.experts)\.(\d+)\.(gate_proj|up_proj|down_proj|w1|w2|w3)\.weight")
