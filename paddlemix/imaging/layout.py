# SPDX-License-Identifier: Apache-2.0
"""Which tiles an image is cut into and in which order their feature rows are merged: integers only, no pixels.

Every rule here is the original LLaVA's (mm_utils.py, llava_arch.py), with its float order: a scale is
``current / original`` in double, a length is ``int(length * scale)`` without rounding. So 50.99999999999999 is 50.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from paddlemix.settings.model import ImageConfig, VisionConfig
from paddlemix.settings.published.grid import ASPECTS
from paddlemix.utils.errors import ConfigError

NEWLINE = -1
"""Entry of ``Layout.order`` that stands for the learnt newline row."""

BLENDED = -2
"""Entry of ``Layout.order`` for row 0 of the layout's ``blend``; row k is ``BLENDED - k``."""

Size = tuple[int, int]
"""(height, width) in pixels."""

MERGES = ("flat", "spatial", "spatial_unpad")


@dataclass(frozen=True, eq=False)
class Layout:
    """The feature rows of one image in merged order.

    ``tiles`` is the number of tiles given to the vision tower. ``order`` (int64) holds ``tile * P + row`` or
    ``NEWLINE``, where P is the number of feature rows of one tile.
    With a ``blend``, entries of ``BLENDED - k`` stand for its row k.
    """

    tiles: int
    order: np.ndarray
    blend: "Blend | None" = None

    @property
    def length(self) -> int:
        """Positions that the image takes in the merged sequence: its visual tokens and newlines."""
        return len(self.order)


@dataclass(frozen=True, eq=False)
class Blend:
    """Rows that are weighted sums of feature rows: ``index`` int64 [K, 4] of ``tile * P + row``, ``weight`` float32."""

    index: np.ndarray
    weight: np.ndarray


def choose_resolution(size: Size, pinpoints: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The (width, height) of ``pinpoints`` that keeps most pixels of an image of ``size``, then wastes least.

    On a tie the first one wins. ``pinpoints`` are (width, height), as the original writes them; reading them as
    (height, width) transposes the grid of every small image.
    """
    height, width = size
    best, most_kept, least_wasted = None, 0, math.inf
    for wide, high in pinpoints:
        scale = min(wide / width, high / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        wasted = wide * high - kept
        if kept > most_kept or (kept == most_kept and wasted < least_wasted):
            best, most_kept, least_wasted = (wide, high), kept, wasted
    if best is None:
        raise ConfigError("image_grid_pinpoints is empty; anyres needs at least one (width, height)")
    return best


def fit_inside(size: Size, target: tuple[int, int]) -> tuple[int, int]:
    """(width, height) of an image of ``size`` scaled into ``target`` (width, height); lengths are rounded up.

    (80, 120) into (112, 112) -> (112, 75).
    """
    height, width = size
    wide, high = target
    scale_w, scale_h = wide / width, high / height
    if scale_w < scale_h:
        return wide, min(math.ceil(height * scale_w), high)
    return min(math.ceil(width * scale_h), wide), high


def tile_grid(size: Size, image: ImageConfig) -> tuple[int, int] | None:
    """(rows, columns) of the tiles of an image of ``size``; None where it is one tile (all but anyres).

    anyres puts one small copy of the whole image before these tiles; it is not counted here.
    """
    if image.aspect not in ASPECTS:
        raise ConfigError(f'image aspect "{image.aspect}" is not known (known: {", ".join(ASPECTS)})')
    if image.aspect != "anyres" or image.one_tile:
        return None
    wide, high = choose_resolution(size, image.grid_pinpoints)
    if wide % image.crop_size or high % image.crop_size:
        raise ConfigError(
            f"image_grid_pinpoints [{wide}, {high}] is no multiple of the tile side of {image.crop_size} pixels"
        )
    return high // image.crop_size, wide // image.crop_size


def unpad_window(size: Size, grid: tuple[int, int]) -> tuple[int, int, int, int]:
    """(top, bottom, left, right) of the feature ``grid`` (rows, columns) that shows an image of ``size``.

    The cut is the same on both sides, so one row or column more than the scaled length may stay.
    Extremely long images can leave no column at all: that is the original's rule, each row is then a newline.
    """
    height, width = size
    rows, columns = grid
    if width / height > columns / rows:
        new_rows = int(height * (columns / width))
        cut = (rows - new_rows) // 2
        return cut, rows - cut, 0, columns
    new_columns = int(width * (rows / height))
    cut = (columns - new_columns) // 2
    return 0, rows, cut, columns - cut


def layout_for(size: Size, tiles_grid: tuple[int, int] | None, image: ImageConfig, vision: VisionConfig) -> Layout:
    """Layout of an image of ``size`` pixels whose tiles lie in ``tiles_grid`` (rows, columns).

    ``tiles_grid`` None is a single tile. Its rows stay as they are; only in the anyres merge with unpad
    (``spatial_unpad``) one newline follows. With several tiles the small copy of the whole image comes first
    (without a newline), then ``flat``: tile after tile; ``spatial``: row by row over the whole image;
    ``spatial_unpad``: the same without the padded border and with one newline after every row.
    """
    if image.merge not in MERGES:
        raise ConfigError(f'merge type "{image.merge}" is not known (known: {", ".join(MERGES)})')
    rows_per_tile = vision.tokens_per_tile
    if tiles_grid is None:
        order = np.arange(rows_per_tile, dtype=np.int64)
        newline = image.aspect == "anyres" and image.merge == "spatial_unpad"
        return _layout(1, np.append(order, NEWLINE) if newline else order)
    tiles = 1 + tiles_grid[0] * tiles_grid[1]
    if image.merge == "flat":
        return _layout(tiles, np.arange(tiles * rows_per_tile, dtype=np.int64))
    if rows_per_tile != vision.grid * vision.grid:
        raise ConfigError(f'merge type "{image.merge}" needs mm_vision_select_feature "patch", not "cls_patch"')
    if image.max_tiles is not None and image.merge == "spatial_unpad":
        smaller = shrunk(size, tiles_grid, image.max_tiles, vision.grid)
        if smaller is not None:
            return _blended(size, tiles_grid, vision.grid, smaller)
    return _layout(tiles, _spatial(size, tiles_grid, vision.grid, image.merge == "spatial_unpad"))


def shrunk(size: Size, tiles_grid: tuple[int, int], max_tiles: int, side: int) -> tuple[int, int] | None:
    """(rows, columns) that ``anyres_max_N`` scales the features of a large image down to; None when it leaves them.

    The rule is LLaVA-NeXT's (llava_arch.py): the side is divided by the square root of how many times more features
    than those of N tiles there are, unless that is at most 1.1; lengths are cut to whole numbers.
    """
    top, bottom, left, right = unpad_window(size, (tiles_grid[0] * side, tiles_grid[1] * side))
    rows, columns = bottom - top, right - left
    times = math.sqrt(rows * columns / (max_tiles * side**2))
    return (int(rows // times), int(columns // times)) if times > _TOLERATED else None


_TOLERATED = 1.1


def _blended(size: Size, tiles_grid: tuple[int, int], side: int, target: tuple[int, int]) -> Layout:
    """The whole image's tile, then its features at ``target`` (rows, columns), each row closed by a newline."""
    picture = _picture(tiles_grid, side)
    top, bottom, left, right = unpad_window(size, picture.shape)
    picture = picture[top:bottom, left:right]
    above, below, down = _bilinear(picture.shape[0], target[0])
    before, behind, along = _bilinear(picture.shape[1], target[1])
    corners = [picture[np.ix_(y, x)] for y in (above, below) for x in (before, behind)]
    shares = [np.outer(y, x) for y in (1 - down, down) for x in (1 - along, along)]
    blend = Blend(np.stack(corners, -1).reshape(-1, 4), np.stack(shares, -1).reshape(-1, 4).astype(np.float32))
    rows = BLENDED - np.arange(target[0] * target[1], dtype=np.int64).reshape(target)
    rows = np.concatenate([rows, np.full((target[0], 1), NEWLINE, dtype=np.int64)], axis=1)
    order = np.concatenate([np.arange(side * side, dtype=np.int64), rows.reshape(-1)])
    for array in (order, blend.index, blend.weight):
        array.setflags(write=False)
    return Layout(1 + tiles_grid[0] * tiles_grid[1], order, blend)


def layout_of_frames(count: int, vision: VisionConfig) -> Layout:
    """Layout of a video of ``count`` frames of one tile each, as LLaVA-OneVision has it.

    The rows of a frame are scaled down to half their side (27 x 27 to 14 x 14), and one newline closes the video.
    """
    side = vision.grid
    half = math.ceil(side / 2)
    before, behind, along = _bilinear(side, half)
    frame = np.arange(side * side, dtype=np.int64).reshape(side, side)
    corners = np.stack([frame[np.ix_(y, x)] for y in (before, behind) for x in (before, behind)], -1).reshape(-1, 4)
    shares = np.stack([np.outer(y, x) for y in (1 - along, along) for x in (1 - along, along)], -1).reshape(-1, 4)
    starts = side * side * np.arange(count, dtype=np.int64)[:, None, None]
    blend = Blend((starts + corners).reshape(-1, 4), np.tile(shares.astype(np.float32), (count, 1)))
    order = np.append(BLENDED - np.arange(len(blend.index), dtype=np.int64), NEWLINE)
    for array in (order, blend.index, blend.weight):
        array.setflags(write=False)
    return Layout(count, order, blend)


def _bilinear(length: int, target: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each of ``target`` places the two of ``length`` beside it and the share of the second, float32.

    As torch's interpolate has it without align_corners: the middle of a place falls on ``(i + 0.5) * scale - 0.5``.
    """
    scale = np.float32(length) / np.float32(target)
    middle = np.maximum((np.arange(target, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5), 0)
    first = np.minimum(middle.astype(np.int64), length - 1)
    return first, np.minimum(first + 1, length - 1), (middle - first).astype(np.float32)


def _picture(tiles_grid: tuple[int, int], side: int) -> np.ndarray:
    """Feature rows of the tiles behind the first, as they lie in the image."""
    rows, columns = tiles_grid
    tiled = side * side + np.arange(rows * columns * side * side, dtype=np.int64)
    return tiled.reshape(rows, columns, side, side).transpose(0, 2, 1, 3).reshape(rows * side, columns * side)


def _spatial(size: Size, tiles_grid: tuple[int, int], side: int, unpad: bool) -> np.ndarray:
    base = np.arange(side * side, dtype=np.int64)
    picture = _picture(tiles_grid, side)
    if unpad:
        top, bottom, left, right = unpad_window(size, picture.shape)
        kept = picture[top:bottom, left:right]
        picture = np.concatenate([kept, np.full((len(kept), 1), NEWLINE, dtype=np.int64)], axis=1)
    return np.concatenate([base, picture.reshape(-1)])


def _layout(tiles: int, order: np.ndarray) -> Layout:
    order.setflags(write=False)
    return Layout(tiles, order)


def layout_of(size: Size, image: ImageConfig, vision: VisionConfig) -> Layout:
    """Layout of an image of ``size`` (height, width) pixels under these settings."""
    return layout_for(size, tile_grid(size, image), image, vision)


def token_range(image: ImageConfig, vision: VisionConfig) -> tuple[int, int]:
    """The fewest and the most image tokens of an image that stands alone, its long side up to 200 times the short one.

    Looked for among images that fill canvases of the grid in one direction and a part of them in the other.
    """
    canvases = [(image.crop_size, image.crop_size), *((height, width) for width, height in image.grid_pinpoints)]
    sizes = set()
    for height, width in canvases:
        for part in (1 / 200, *(step / 32 for step in range(1, 33))):
            low, narrow = max(round(part * height), -(-width // 200)), max(round(part * width), -(-height // 200))
            sizes |= {(low, width), (height, narrow)}
    counts = [token_count(size, image, vision) for size in sizes]
    return min(counts), max(counts)


def tokens_told(image: ImageConfig, vision: VisionConfig) -> str:
    """``token_range`` for a person: ``576``, or ``576 to 2928``."""
    fewest, most = token_range(image, vision)
    return str(most) if fewest == most else f"{fewest} to {most}"


def token_count(size: Size, image: ImageConfig, vision: VisionConfig) -> int:
    """Image tokens of an image of ``size``: always ``len(layout_of(...).order)``, computed without the order."""
    grid = tile_grid(size, image)
    if grid is None:
        return vision.tokens_per_tile + (image.aspect == "anyres" and image.merge == "spatial_unpad")
    if image.merge == "flat":
        return (1 + grid[0] * grid[1]) * vision.tokens_per_tile
    side = vision.grid
    rows, columns = grid[0] * side, grid[1] * side
    smaller = None
    if image.merge == "spatial_unpad" and image.max_tiles is not None:
        smaller = shrunk(size, grid, image.max_tiles, side)
    if smaller is not None:
        rows, columns = smaller[0], smaller[1] + 1
    elif image.merge == "spatial_unpad":
        top, bottom, left, right = unpad_window(size, (rows, columns))
        rows, columns = bottom - top, right - left + 1
    return side * side + rows * columns
