# SPDX-License-Identifier: Apache-2.0
"""Where every position of the merged batch comes from: token ids and image layouts in, gather indices out.

A worked example. Two feature rows a tile (P = 2), ids ``[1, IMAGE, 7]`` whose image has one tile, order ``[0, 1]``
and a newline, and a second row ``[1, 8]``:

    token_ids  [[1, 0, 0, 0, 7],   source  [[0, 10, 11, 13, 4],    positions  [[0, 1, 2, 3, 4],   lengths [5, 2]
                [1, 8, 0, 0, 0]]            [5, 6, 12, 12, 12]]                [0, 1, 0, 0, 0]]

``source`` points into ``concat([text rows (B*L = 10), feature rows (n_tiles*P = 2), zero row, newline row])``: text at
(b, l) is b*L + l, the features are 10 and 11, padding is 12, the newline is 13.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from paddlemix.imaging.layout import BLENDED, NEWLINE, Layout
from paddlemix.utils.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from paddlemix.utils.errors import DataError


@dataclass(frozen=True, eq=False)
class PlanRow:
    """One row of the batch before merging.

    ``ids`` [T] hold IMAGE_TOKEN_INDEX where an image goes; those places use ``layouts`` in order. ``labels`` [T] are
    not shifted. ``segments`` [T] number the samples packed into the row; a new number begins a new sample.
    """

    ids: np.ndarray | Sequence[int]
    layouts: Sequence[Layout] = ()
    labels: np.ndarray | Sequence[int] | None = None
    segments: np.ndarray | Sequence[int] | None = None


@dataclass(frozen=True, eq=False)
class Plan:
    """The merged batch in integers; all arrays int64.

    ``token_ids`` [B, L] (0 where the position is not text), ``source`` [B, L] (see the module), ``labels`` [B, L],
    ``positions`` [B, L] (0 on padding), ``segments`` [B, L] (1, 2, ... and 0 on padding), ``lengths`` [B],
    ``starts`` [B] (first valid column), ``truncated`` [B] (merged positions cut off at the end of each row).
    ``n_tiles`` counts the tiles that the model is given, in the order rows, then layouts. ``blend_index`` int64 [K, 4]
    and ``blend_weight`` float32 [K, 4] are rows made of feature rows (``anyres_max_N``), None when there are none;
    ``source`` counts them on behind the newline.
    """

    token_ids: np.ndarray
    source: np.ndarray
    labels: np.ndarray
    positions: np.ndarray
    segments: np.ndarray
    lengths: np.ndarray
    starts: np.ndarray
    truncated: np.ndarray
    n_tiles: int
    tokens_per_tile: int
    blend_index: np.ndarray | None = None
    blend_weight: np.ndarray | None = None

    @property
    def mask(self) -> np.ndarray:
        """bool [B, L], true where a position is no padding."""
        columns = np.arange(self.token_ids.shape[1])[None, :]
        return (columns >= self.starts[:, None]) & (columns < (self.starts + self.lengths)[:, None])


@dataclass(frozen=True, eq=False)
class _Merged:
    """One row after merging; ``feature`` is a row of the batch's features, NEWLINE, ``BLENDED - k``, or ``_TEXT``."""

    tokens: np.ndarray
    feature: np.ndarray
    labels: np.ndarray
    positions: np.ndarray
    segments: np.ndarray
    truncated: int


_TEXT = np.iinfo(np.int64).min


def build_plan(
    rows: Sequence[PlanRow],
    *,
    tokens_per_tile: int,
    max_length: int | None = None,
    padding_side: str = "right",
    pad_to_multiple_of: int | None = None,
    min_tiles: int = 0,
) -> Plan:
    """Merge a batch.

    ``tokens_per_tile`` is P. ``max_length`` cuts the merged rows at their end, as the original does, even inside an
    image and with left padding too; ``Plan.truncated`` says where and how much. ``pad_to_multiple_of`` rounds L up
    (possibly above ``max_length``, with padding only). ``min_tiles`` reserves feature rows for tiles that belong to
    no row, so that the shape of a batch without images can equal that of one with images.
    Raises DataError with the row number when a row is empty, a length differs or the images do not fit the places.
    """
    if padding_side not in ("right", "left"):
        raise DataError(f'padding_side "{padding_side}": expected "right" or "left"')
    if not rows:
        raise DataError("a batch without rows has no plan")
    merged, tiles, blended = [], 0, 0
    for index, row in enumerate(rows):
        merged.append(_merge(index, row, (tiles, blended), tokens_per_tile, max_length))
        tiles += sum(layout.tiles for layout in row.layouts)
        blended += sum(_blended_rows(layout) for layout in row.layouts)
    lengths = np.array([len(row.tokens) for row in merged], dtype=np.int64)
    width = int(lengths.max())
    if pad_to_multiple_of:
        width = -(-width // pad_to_multiple_of) * pad_to_multiple_of
    starts = width - lengths if padding_side == "left" else np.zeros_like(lengths)
    n_tiles = max(tiles, min_tiles)
    return Plan(
        token_ids=_lay([row.tokens for row in merged], starts, width, 0),
        source=_source(merged, starts, width, n_tiles * tokens_per_tile),
        labels=_lay([row.labels for row in merged], starts, width, IGNORE_INDEX),
        positions=_lay([row.positions for row in merged], starts, width, 0),
        segments=_lay([row.segments for row in merged], starts, width, 0),
        lengths=lengths,
        starts=starts,
        truncated=np.array([row.truncated for row in merged], dtype=np.int64),
        n_tiles=n_tiles,
        tokens_per_tile=tokens_per_tile,
        **_blends(rows, tokens_per_tile),
    )


def _blended_rows(layout: Layout) -> int:
    return 0 if layout.blend is None else len(layout.blend.index)


def _blends(rows: Sequence[PlanRow], per_tile: int) -> dict[str, np.ndarray]:
    """The blended rows of all layouts, pointing into the features of the batch."""
    index, weight, first = [], [], 0
    for layout in (layout for row in rows for layout in row.layouts):
        if layout.blend is not None:
            index.append(layout.blend.index + first * per_tile)
            weight.append(layout.blend.weight)
        first += layout.tiles
    return {"blend_index": np.concatenate(index), "blend_weight": np.concatenate(weight)} if index else {}


def _merge(index: int, row: PlanRow, first: tuple[int, int], per_tile: int, max_length: int | None) -> _Merged:
    ids = np.asarray(row.ids, dtype=np.int64)
    labels = _beside(index, "labels", row.labels, ids, IGNORE_INDEX)
    segments = _beside(index, "segments", row.segments, ids, 0)
    is_place = ids == IMAGE_TOKEN_INDEX
    _check(index, ids, is_place, row.layouts, per_tile)
    spans = np.ones(len(ids), dtype=np.int64)
    spans[is_place] = [layout.length for layout in row.layouts]
    origin = np.repeat(np.arange(len(ids)), spans)
    is_image = is_place[origin]
    feature = np.full(len(origin), _TEXT, dtype=np.int64)
    feature[is_image] = _feature_rows(row.layouts, *first, per_tile)
    tokens = np.where(is_image, 0, ids[origin])
    labels = np.where(is_image, IGNORE_INDEX, labels[origin])
    segments, positions = _number(segments[origin])
    if row.segments is not None:
        # The last position of one packed sample must not be asked for the first token of the next.
        labels[positions == 0] = IGNORE_INDEX
    keep = slice(0, max_length)
    cut = 0 if max_length is None else max(0, len(tokens) - max_length)
    return _Merged(tokens[keep], feature[keep], labels[keep], positions[keep], segments[keep], cut)


def _beside(
    index: int, name: str, values: np.ndarray | Sequence[int] | None, ids: np.ndarray, empty: int
) -> np.ndarray:
    if values is None:
        return np.full(len(ids), empty, dtype=np.int64)
    array = np.asarray(values, dtype=np.int64)
    if array.shape != ids.shape:
        raise DataError(f"batch row {index}: {len(array)} {name} for {len(ids)} ids; they must be as many")
    return array


def _check(index: int, ids: np.ndarray, is_place: np.ndarray, layouts: Sequence[Layout], per_tile: int) -> None:
    if not len(ids):
        raise DataError(f"batch row {index} has no tokens")
    places = int(is_place.sum())
    if places != len(layouts):
        raise DataError(f"batch row {index}: {places} image places but {len(layouts)} images; each place needs one")
    wrong = ids[(ids < 0) & ~is_place]
    if len(wrong):
        raise DataError(f"batch row {index}: token id {wrong[0]} is negative and no image place ({IMAGE_TOKEN_INDEX})")
    for number, layout in enumerate(layouts):
        lowest = NEWLINE - _blended_rows(layout)
        if len(layout.order) and not lowest <= layout.order.min() <= layout.order.max() < layout.tiles * per_tile:
            raise DataError(
                f"batch row {index}, image {number}: its layout names feature rows {layout.order.min()} to "
                f"{layout.order.max()}, but {layout.tiles} tiles of {per_tile} rows were announced"
            )


def _feature_rows(layouts: Sequence[Layout], first_tile: int, first_blended: int, per_tile: int) -> np.ndarray:
    parts = []
    for layout in layouts:
        rows = np.where(layout.order >= 0, layout.order + first_tile * per_tile, layout.order)
        parts.append(np.where(layout.order <= BLENDED, layout.order - first_blended, rows))
        first_tile += layout.tiles
        first_blended += _blended_rows(layout)
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)


def _number(segments: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Segments as 1, 2, ... in order of appearance, and positions that begin at 0 in each of them."""
    columns = np.arange(len(segments), dtype=np.int64)
    begins = np.ones(len(segments), dtype=bool)
    begins[1:] = segments[1:] != segments[:-1]
    return np.cumsum(begins), columns - np.maximum.accumulate(np.where(begins, columns, 0))


def _lay(parts: list[np.ndarray], starts: np.ndarray, width: int, empty: int) -> np.ndarray:
    out = np.full((len(parts), width), empty, dtype=np.int64)
    for row, part, start in zip(out, parts, starts, strict=True):
        row[start : start + len(part)] = part
    return out


def _source(merged: list[_Merged], starts: np.ndarray, width: int, feature_rows: int) -> np.ndarray:
    text_rows = len(merged) * width
    padding = text_rows + feature_rows
    feature = _lay([row.feature for row in merged], starts, width, feature_rows)
    text = np.arange(text_rows, dtype=np.int64).reshape(len(merged), width)
    source = np.where(feature == _TEXT, text, text_rows + feature)
    special = (feature < 0) & (feature != _TEXT)
    source[special] = padding - feature[special]  # the newline (-1) is behind the zero row, blended rows behind that
    return source


def label_places(
    labels: np.ndarray, segments: np.ndarray | None = None, starts: np.ndarray | None = None
) -> np.ndarray:
    """int64 [K]: the places among all B L of ``labels`` [B, L] that predict one; [0], a place like any, without any.

    With ``segments`` [B, L] a place at the end of a packed sample predicts nothing, with ``starts`` [B] (left padding)
    neither does the one before the first of a row: as ``models.loss.next_labels`` has it.
    """
    learnt = labels[:, 1:] != IGNORE_INDEX
    if segments is not None:
        learnt &= segments[:, 1:] == segments[:, :-1]
    if starts is not None:
        learnt &= np.arange(1, labels.shape[1]) != starts[:, None]
    rows, columns = np.nonzero(learnt)
    found = rows * labels.shape[1] + columns
    return found if len(found) else np.zeros(1, np.int64)
