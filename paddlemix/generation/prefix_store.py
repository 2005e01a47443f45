# SPDX-License-Identifier: Apache-2.0
"""Keys and values of prompts and conversations that many requests share, up to a limit in bytes."""

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Sequence

from paddlemix.generation.prefix import Slot, length_of
from paddlemix.models.llm.slot_cache import RowCache

DEFAULT_BYTES = 1 << 30
"""Limit of what a process keeps. 2,000 places of a 7B model take 1 GB in float16."""
SHORTEST = 16
"""Positions from which on a shared beginning is worth taking: copying what is kept costs about one step."""


class PrefixStore:
    """What finished and running rows left, the last used kept longest. It belongs to one model and one thread.

    ``reused`` counts positions that did not have to be run, ``bytes`` what is held. ``size`` is what a row counts for
    (default: its bytes).
    """

    def __init__(self, max_bytes: int = DEFAULT_BYTES, *, size: Callable[[RowCache], int] | None = None) -> None:
        self.max_bytes = max_bytes
        self._size = size or (lambda row: row.bytes)
        self.bytes = self.reused = 0
        self._kept: OrderedDict[tuple[int | bytes, ...], RowCache] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def find(self, slots: Sequence[Slot]) -> tuple[RowCache, int] | None:
        """The row that shares the longest beginning with ``slots``, and the number of slots shared.

        At most all slots but the last, whose scores are wanted. None when nothing worth a copy is shared.
        """
        wanted = key_of(slots[:-1])
        best, shared = None, 0
        for key in self._kept:
            count = _common(key, wanted)
            if count > shared:
                best, shared = key, count
        if best is None or length_of(slots[:shared]) < SHORTEST:
            return None
        self._kept.move_to_end(best)
        self.reused += length_of(slots[:shared])
        return self._kept[best], shared

    def put(self, slots: Sequence[Slot], row: RowCache) -> None:
        """Keep ``row``, the keys and values of ``slots``. What is a beginning of it goes; older ones make room."""
        key = key_of(slots)
        for held in [held for held in self._kept if len(held) <= len(key) and key[: len(held)] == held]:
            self.bytes -= self._size(self._kept.pop(held))
        if self._size(row) > self.max_bytes:
            return
        self._kept[key] = row
        self.bytes += self._size(row)
        while self.bytes > self.max_bytes:
            self.bytes -= self._size(self._kept.popitem(last=False)[1])


def key_of(slots: Sequence[Slot]) -> tuple[int | bytes, ...]:
    """Slots as values that compare fast: the id of a word, the key of an image."""
    return tuple(slot.key or slot.token for slot in slots)


def _common(left: tuple[int | bytes, ...], right: tuple[int | bytes, ...]) -> int:
    """Number of values at the beginning that are the same in both; whole pieces are compared, not single values."""
    most = min(len(left), len(right))
    return bisect_left(range(1, most + 1), True, key=lambda count: left[:count] != right[:count])
