# SPDX-License-Identifier: Apache-2.0
"""What a weight file may say: names that can be shown, shapes that can be held, and values cut short for an error."""

import math
import reprlib
from collections.abc import Iterable

from paddlemix.checkpoint.formats.base import ARRAY_TYPES

MAX_NAME = 1024

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 120
_SHORT.maxtuple = _SHORT.maxlist = _SHORT.maxdict = 10
_SHORT.maxlevel = 3


def brief(value: object) -> str:
    """``repr`` of a value from a file, cut short: tuples of tuples may have more ends than there are atoms."""
    return _SHORT.repr(value)


def plain_name(name: str) -> bool:
    """Whether the name of a tensor or folder can be kept and shown: no control characters, which rule a terminal."""
    return 0 < len(name) <= MAX_NAME and name.isprintable() and all(len(part) < 256 for part in name.split("/"))


def addressable(shape: Iterable[int], dtype: str) -> bool:
    """Whether an array may have this shape; one that is empty in one direction may be too large in another."""
    return math.prod(max(1, size) for size in shape) * ARRAY_TYPES[dtype].itemsize < 1 << 62
