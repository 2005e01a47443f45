# SPDX-License-Identifier: Apache-2.0
"""The key and value cache of a fixed size, with a length for each row: unequal rows, and graphs."""

import numpy as np
import paddle
from paddle import Tensor

from paddlemix.models.llm.cache import take_rows
from paddlemix.ops import few_rows
from paddlemix.ops.attention.contract import swap_heads
from paddlemix.ops.attention.select import cache_keeps_heads_first
from paddlemix.ops.dtypes import dtype_name, to_dtype
from paddlemix.ops.runtime import Runtime
from paddlemix.ops.tracing import size
from paddlemix.utils.errors import ConfigError

Count = int | np.ndarray | Tensor
"""Places of the rows: one number for all, or int64 [B]; a tensor (also []) only while a graph is traced."""


class StaticCache:
    """The cache of a fixed ``capacity``: each row has its own length, and every step has the same shapes.

    Rows are filled from the left, so a batch of unequal prompts is padded on the right: after its prefill ``trim`` is
    given each row's own length, and the next tokens overwrite the padding. The first step of an empty cache attends to
    its own keys alone; later ones get all places, of which the mask (``offset``) shows each row its own.

    Two rows with 3 and 1 places write their next key to places 3 and 1:

        >>> cache.trim(np.array([3, 1]))
        >>> keys, values = cache.append(0, k, v)    # k [2, 1, Hk, D]; Mask(causal=True, offset=cache.offset)

    While a graph is traced the lengths are tensors (``of``); nobody can then check that a row has room, so the caller
    does before each step. A row without room spoils its own last place and no other row.
    """

    def __init__(self, layers: int, capacity: int, dtype: str, runtime: Runtime) -> None:
        self.own_lengths = True
        self.heads_first = cache_keeps_heads_first(runtime)
        self.capacity = capacity
        self._dtype = getattr(paddle, dtype)
        self.keys: list[Tensor | None] = [None] * layers
        self.values: list[Tensor | None] = [None] * layers
        self._in_place = runtime.device != "npu"  # its plug-ins are known to have the other form
        self._set(0)

    @classmethod
    def of(cls, keys: list[Tensor], values: list[Tensor], lengths: Count, runtime: Runtime) -> "StaticCache":
        """What a step left: ``keys``, ``values`` of every layer, [B, Hk, M, D] or [B, M, Hk, D] (``heads_first``).

        Of one dtype, in which the cache goes on.
        """
        axis = 2 if cache_keeps_heads_first(runtime) else 1
        cache = cls(len(keys), keys[0].shape[axis], dtype_name(keys[0].dtype), runtime)
        cache.keys, cache.values = list(keys), list(values)
        cache._set(lengths)
        return cache

    @property
    def lengths(self) -> Count:
        """Filled places of each row."""
        return self._lengths

    @property
    def offset(self) -> int | Tensor:
        """A number where all rows are known to have as many places, else an int64 tensor [B]. One object a step."""
        return self._offset

    def held(self, layer: int) -> tuple[Tensor, Tensor] | None:
        """Keys and values of a layer as they lie (``[B, Hk, M, D]`` if ``heads_first``); None before the first step."""
        keys, values = self.keys[layer], self.values[layer]
        return None if keys is None or values is None else (keys, values)

    def room(self) -> list[tuple[Tensor, Tensor]] | None:
        """See ``Cache``: ``[B, Hk, M, D]`` or ``[B, M, Hk, D]`` in its dtype. ConfigError: a row is full."""
        if self.keys[0] is None or (isinstance(self._lengths, int) and self._lengths == 0):
            return None
        self._require_room(1)
        return list(zip(self.keys, self.values, strict=True))

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write ``[B, L, Hk, D]`` behind each row's filled places; give all places back (an empty cache: ``k, v``).

        Both are kept and given in the dtype of the cache.
        """
        if self.heads_first:
            k, v = swap_heads(k), swap_heads(v)
        self._require_room(k.shape[self._axis])
        k, v = to_dtype(k, self._dtype), to_dtype(v, self._dtype)
        if isinstance(self._lengths, int) and self._lengths == 0:
            self.keys[layer], self.values[layer] = self._filled_up(k), self._filled_up(v)
            return k, v
        self.keys[layer], self.values[layer] = self._put(self.keys[layer], k), self._put(self.values[layer], v)
        return self.keys[layer], self.values[layer]

    def advance(self, count: int | Tensor) -> None:
        """``count`` more places (a whole number, or an int64 scalar in a graph) are filled in every row."""
        self._set(self._lengths + count)

    def trim(self, length: Count) -> None:
        """Keep the first ``length`` places of all rows, or of each. What lies behind is overwritten by later steps."""
        known = _known(length) and _known(self._lengths)
        if known and (np.less(length, 0) | np.greater(length, self._lengths)).any():
            raise ConfigError(f"KV cache: cannot trim {_listed(self._lengths)} filled places to {_listed(length)}")
        self._set(length)

    def reorder(self, rows: list[int]) -> None:
        """Row i becomes a copy of what row ``rows[i]`` was; their number is the new batch (beam search)."""
        self.keys = [None if held is None else take_rows(held, rows) for held in self.keys]
        self.values = [None if held is None else take_rows(held, rows) for held in self.values]
        self._set(self._lengths if isinstance(self._lengths, int) else self._lengths[rows])

    @property
    def _axis(self) -> int:
        return 2 if self.heads_first else 1

    def _set(self, lengths: Count) -> None:
        if isinstance(lengths, np.ndarray) and (lengths == lengths[0]).all():
            lengths = int(lengths[0])
        self._lengths = lengths
        self._offset = paddle.to_tensor(lengths, dtype="int64") if isinstance(lengths, np.ndarray) else lengths
        self._index: tuple[tuple[int, ...], Tensor] | None = None

    def _require_room(self, new: int) -> None:
        if _known(self._lengths) and new > 0 and np.max(self._lengths) + new > self.capacity:
            raise ConfigError(
                f"static KV cache of {self.capacity} places: rows hold {_listed(self._lengths)}, and {new} more do not "
                "fit; create it with a larger capacity"
            )

    def _filled_up(self, new: Tensor) -> Tensor:
        """``new`` and zeros up to the capacity: a weight of exactly 0 still meets the value, and 0 * NaN is NaN."""
        shape = list(new.shape)
        if min(shape) < 0:  # zeros of open sizes are an operator that custom devices lack on paddle 3.0
            shape[0], shape[self._axis] = 1, self.capacity
            empty, count = paddle.zeros(shape, dtype=new.dtype), size(new, self._axis)
            tail = empty[:, :, count:] if self.heads_first else empty[:, count:]
            tail = tail.expand([size(new, 0), -1, -1, -1])  # -1: as it is
        else:
            shape[self._axis] = self.capacity - shape[self._axis]
            tail = paddle.zeros(shape, dtype=new.dtype)
        return paddle.concat([new, tail], axis=self._axis)

    def _put(self, held: Tensor, new: Tensor) -> Tensor:
        """``held`` with ``new`` at the places of each row: one scatter of rows of D values."""
        if held.shape[0] != new.shape[0] and min(held.shape[0], new.shape[0]) >= 0:
            raise ConfigError(
                f"static KV cache of {held.shape[0]} rows was given {new.shape[0]} rows; create one per batch"
            )
        if self.heads_first and few_rows.put([held], [new], self._offset):
            return held
        key = tuple(new.shape)
        if self._index is None or self._index[0] != key:  # the same for all layers of a step
            self._index = key, self._places(new)
        width, index = new.shape[3], self._index[1]
        write = paddle.scatter_ if self._in_place and paddle.in_dynamic_mode() else paddle.scatter
        flat = write(held.reshape([-1, width]), index, new.reshape([-1, width]))
        return flat.reshape([size(held, axis) for axis in range(4)])

    def _places(self, new: Tensor) -> Tensor:
        """Int64: for each row of D values of ``new`` the one of the cache that it replaces."""
        batch, count = size(new, 0), size(new, self._axis)
        offset = self._offset
        first = paddle.full([1, 1], offset, "int64") if isinstance(offset, int) else offset.reshape([-1, 1])
        places = first + paddle.arange(count).reshape([1, -1])  # [B or 1, L]
        if not _known(self._lengths):
            places = paddle.clip(places, max=self.capacity - 1)
        if not self.heads_first:
            heads = new.shape[2]
            rows = paddle.arange(batch).reshape([-1, 1, 1]) * self.capacity + places.unsqueeze(-1)
            return (rows * heads + paddle.arange(heads).reshape([1, 1, -1])).reshape([-1])
        heads = new.shape[1]
        rows = paddle.arange(batch).reshape([-1, 1, 1]) * heads + paddle.arange(heads).reshape([1, -1, 1])
        return (rows * self.capacity + places.unsqueeze(1)).reshape([-1])


def _known(lengths: Count) -> bool:
    return isinstance(lengths, int | np.integer | np.ndarray)


def _listed(lengths: Count) -> str:
    return str(lengths) if isinstance(lengths, int) else ", ".join(map(str, lengths))
