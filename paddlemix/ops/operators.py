# SPDX-License-Identifier: Apache-2.0
"""The table of the operators that have a fast form. A new one is its file, a row here, and its flag."""

from paddlemix.ops.activation import SWIGLU
from paddlemix.ops.attention.select import ATTENTION
from paddlemix.ops.dispatch import Operator
from paddlemix.ops.norm import RMS_NORM
from paddlemix.ops.npu.mc2 import MC2
from paddlemix.ops.rope import ROPE

OPERATORS: dict[str, Operator] = {one.name: one for one in (ATTENTION, RMS_NORM, ROPE, SWIGLU, MC2)}
"""By the name that the flag ends in (``PADDLEMIX_NPU_FUSED_<name>``)."""
