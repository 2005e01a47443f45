# SPDX-License-Identifier: Apache-2.0
"""Encoded samples to one batch of numpy arrays, whose keys are the arguments of ``LlavaForCausalLM.forward``."""

from collections.abc import Sequence

import numpy as np

from paddlemix.datasets.preprocess import Encoded
from paddlemix.splice.plan import PlanRow, build_plan
from paddlemix.utils.constants import IGNORE_INDEX


class Collator:
    """Merges a batch by the splice plan.

    Keys: ``token_ids``, ``source``, ``positions``, ``labels`` (int64 [B, L]); ``pixels`` (float32 [N, 3, S, S]) when
    there is a tile; ``starts`` (int64 [B]) with left padding; ``segments`` (int64 [B, L]) when a row is packed.
    ``blend_index`` and ``blend_weight`` [K, 4] when ``anyres_max_N`` scales an image's features down.
    ``min_tiles`` adds black tiles that nothing refers to, so that the projector takes part in every batch. None in the
    batch is a row that was skipped; a batch of nothing else becomes one row without labels, whose loss and gradients
    are zero.
    """

    def __init__(
        self,
        *,
        tokens_per_tile: int,
        tile_side: int,
        padding_side: str = "right",
        pad_to_multiple_of: int | None = None,
        min_tiles: int = 0,
    ) -> None:
        self.tokens_per_tile = tokens_per_tile
        self.tile_side = tile_side
        self.padding_side = padding_side
        self.pad_to_multiple_of = pad_to_multiple_of
        self.min_tiles = min_tiles

    def __call__(self, items: Sequence[Encoded | None]) -> dict[str, np.ndarray]:
        """The batch of all items that are not None.

        int64 ``token_ids``, ``source``, ``positions`` and ``labels`` [B, L]; with images ``pixels`` float32
        [N, 3, S, S]; where they are needed ``blend_index`` int64 and ``blend_weight`` float32 [K, 4], ``starts``
        int64 [B], ``segments`` int64 [B, L].
        """
        kept = [item for item in items if item is not None]
        rows = [PlanRow(item.ids, item.layouts, item.labels, item.segments) for item in kept]
        plan = build_plan(
            rows or [PlanRow([0], (), [IGNORE_INDEX])],
            tokens_per_tile=self.tokens_per_tile,
            padding_side=self.padding_side,
            pad_to_multiple_of=self.pad_to_multiple_of,
            min_tiles=self.min_tiles,
        )
        batch = {
            "token_ids": plan.token_ids,
            "source": plan.source,
            "positions": plan.positions,
            "labels": plan.labels,
        }
        if plan.blend_index is not None:
            batch["blend_index"], batch["blend_weight"] = plan.blend_index, plan.blend_weight
        if plan.n_tiles:
            batch["pixels"] = self._pixels(kept, plan.n_tiles)
        if self.padding_side == "left":
            batch["starts"] = plan.starts
        if any(item.segments is not None for item in kept):
            batch["segments"] = plan.segments
        return batch

    def _pixels(self, kept: list[Encoded], tiles: int) -> np.ndarray:
        parts = [item.pixels for item in kept if item.pixels is not None]
        missing = tiles - sum(len(part) for part in parts)
        if missing:
            parts.append(np.zeros((missing, 3, self.tile_side, self.tile_side), dtype=np.float32))
        return np.concatenate(parts)
