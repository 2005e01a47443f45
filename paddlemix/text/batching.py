# SPDX-License-Identifier: Apache-2.0
"""Rows of token ids side by side: what a batch of texts is for a model."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from paddlemix.utils.errors import ConfigError

SIDES = ("left", "right")


def pad_rows(rows: Sequence[Sequence[int]], pad_id: int, side: str = "left") -> dict[str, np.ndarray]:
    """``input_ids`` and ``attention_mask`` int64 [B, T]: the rows, filled up to the longest one on ``side``."""
    if side not in SIDES:
        raise ConfigError(f'padding side "{side}": expected one of {", ".join(SIDES)}')
    width = max((len(row) for row in rows), default=0)
    ids = np.full((len(rows), width), pad_id, dtype=np.int64)
    mask = np.zeros_like(ids)
    for number, row in enumerate(rows):
        where = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        ids[number, where] = row
        mask[number, where] = 1
    return {"input_ids": ids, "attention_mask": mask}


class Encoder(Protocol):
    """The part of a tokenizer that is used here."""

    @property
    def pad_id(self) -> int:
        """Fills rows up."""
        ...

    def encode_with_images(self, text: str) -> list[int]:
        """Ids of a text, with IMAGE_TOKEN_INDEX at each ``<image>``."""
        ...


def encode_rows(tokenizer: Encoder, text: str | Sequence[str], *, padding: bool, side: str) -> dict[str, Any]:
    """``input_ids`` and ``attention_mask`` of a text, or of several; ``<image>`` is IMAGE_TOKEN_INDEX.

    Lists (of lists, for several texts), or with ``padding`` int64 arrays [B, T] that are filled up on ``side``.
    """
    rows = [tokenizer.encode_with_images(one) for one in ([text] if isinstance(text, str) else text)]
    if padding:
        return pad_rows(rows, tokenizer.pad_id, side)
    if isinstance(text, str):
        return {"input_ids": rows[0], "attention_mask": [1] * len(rows[0])}
    return {"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]}


def as_list(given: Any) -> list[Any]:
    """Images as a list: None is none of them, and one that stands alone (a path, bytes, PIL) is a list of one."""
    if given is None:
        return []
    return list(given) if isinstance(given, list | tuple) else [given]
