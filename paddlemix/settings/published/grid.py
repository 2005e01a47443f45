# SPDX-License-Identifier: Apache-2.0
"""``image_aspect_ratio`` and ``image_grid_pinpoints`` in every spelling of LLaVA and LLaVA-NeXT."""

import re

from paddlemix.settings.published.reader import KeyReader
from paddlemix.utils.errors import CheckpointError
from paddlemix.utils.foreign import parse_json
from paddlemix.utils.registry import nearest

ASPECTS = ("square", "pad", "anyres")
_LIMITED = re.compile(r"anyres_max_([1-9][0-9]{0,3})")
_RANGE = re.compile(r"\(([1-9][0-9]?)x([1-9][0-9]?)\)")

Grid = tuple[tuple[int, int], ...]


def read_aspect(reader: KeyReader, default: str) -> tuple[str, int | None]:
    """The aspect, and the N of ``anyres_max_N`` (LLaVA-NeXT: features of more tiles are scaled down)."""
    value = reader.take("image_aspect_ratio", str, default)
    match = _LIMITED.fullmatch(value)
    if match:
        return "anyres", int(match[1])
    if value not in ASPECTS:
        known = f"{', '.join(ASPECTS)}, anyres_max_N"
        reader.wrong("image_aspect_ratio", value, f"expected one of {known}{nearest(value, ASPECTS)}")
    return value, None


def read_grid(reader: KeyReader, side: int) -> Grid:
    """(width, height) pairs in pixels; empty when the key is absent. ``side``: of a tile, in pixels.

    A list of pairs, the same list as text, or LLaVA-NeXT's ``(1x1),...,(6x6)``: all numbers of tiles from the first
    to the last, the second number running fastest (mm_utils.py), which decides ties.
    """
    value = reader.data.get("image_grid_pinpoints")
    if not isinstance(value, str):
        return reader.pairs("image_grid_pinpoints")
    reader.take("image_grid_pinpoints", str, "")
    ends = _RANGE.findall(value)
    if ends and not _RANGE.sub("", value).strip(" ,."):
        (first_w, first_h), (last_w, last_h) = (tuple(map(int, end)) for end in (ends[0], ends[-1]))
        found = [(w * side, h * side) for w in range(first_w, last_w + 1) for h in range(first_h, last_h + 1)]
        if found:
            return tuple(found)
    try:
        pairs = parse_json(value.replace("(", "[").replace(")", "]"), "", CheckpointError)
    except CheckpointError:
        pairs = None
    if not isinstance(pairs, list) or not pairs:
        reader.wrong("image_grid_pinpoints", value, 'expected a list of [width, height], or "(1x1),...,(6x6)"')
    return KeyReader({"image_grid_pinpoints": pairs}, reader.file, reader.pointer).pairs("image_grid_pinpoints")
