# SPDX-License-Identifier: Apache-2.0
"""The key and value cache inside an exported graph: given from outside, read only; the step's own keys go out."""

from paddle import Tensor

from paddlemix.ops.attention.parted import Parts


class GivenCache:
    """``keys``, ``values`` of every layer [B, Hk, M, D], of which ``offset`` int64 [B] places of each row are filled.

    ``new_keys`` and ``new_values`` collect what each layer appends, [B, L, Hk, D]; whoever runs the graph writes them
    into the cache. ``blocks`` is that of ``Parts``.
    """

    own_lengths = True
    heads_first = True
    capacity = 0  # not known while a graph is traced; whoever runs it looks at its own

    def __init__(self, keys: list[Tensor], values: list[Tensor], offset: Tensor, blocks: int = 1) -> None:
        self._blocks = blocks
        self._keys, self._values = keys, values
        self.offset = offset
        self.new_keys: list[Tensor] = []
        self.new_values: list[Tensor] = []

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Parts, Parts]:
        """``[B, L, Hk, D]`` beside the given places of one layer, without joining them."""
        self.new_keys.append(k)
        self.new_values.append(v)
        given = self._keys[layer], self._values[layer]
        return Parts(given[0], k, self.offset, self._blocks), Parts(given[1], v, self.offset)

    def advance(self, count: int | Tensor) -> None:
        """Nothing (``count`` is a whole number or an int64 scalar): the graph ends here."""
