# SPDX-License-Identifier: Apache-2.0
"""What generation needs of a model: the layers of ``models.llava`` and the graphs of ``export`` both offer it."""

from typing import Protocol, TypeAlias

from paddle import Tensor

from paddlemix.models.llm.cache import Cache, KVCache
from paddlemix.ops.attention.contract import Mask
from paddlemix.ops.runtime import Runtime
from paddlemix.settings.model import LlavaConfig


class PlannedRows(Protocol):
    """The places of a prompt before the decoder has seen them."""

    @property
    def shape(self) -> list[int]:
        """``[B, L, D]``."""

    def __getitem__(self, part: tuple[slice, slice]) -> "Rows":
        """Some of the rows, and of their places."""


Rows: TypeAlias = Tensor | PlannedRows
"""``[B, L, D]``: embeddings, or what a graph makes them of."""


class AnsweringModel(Protocol):
    """A model that can be asked. Letters: docs/architecture.md."""

    config: LlavaConfig

    @property
    def dtype(self) -> str:
        """Dtype in which the decoder computes."""

    @property
    def runtime(self) -> Runtime:
        """Where it computes; caches lie as this says."""

    def encode_images(self, pixels: Tensor) -> Tensor:
        """``[N, 3, S, S]`` to ``[N, P, D]``."""

    def embed(
        self, token_ids: Tensor, source: Tensor, features: Tensor | None, blend: tuple[Tensor, Tensor] | None = None
    ) -> Rows:
        """The rows of a splice plan: ``[B, L]`` twice, ``[N, P, D]`` and the plan's blend to ``[B, L, D]``."""

    def score_next(
        self, rows: Rows, positions: Tensor, mask: Mask, cache: Cache | None, ends: Tensor | None = None
    ) -> Tensor:
        """Scores float32 ``[B, V]`` of the token behind ``rows``, which the cache takes in.

        ``ends`` int64 [B]: the last place of each row among all ``B * L`` (None: the last column).
        """

    def new_cache(self, batch: int, capacity: int = 0) -> KVCache:
        """An empty cache for ``batch`` rows, with room for ``capacity`` places from the start."""
