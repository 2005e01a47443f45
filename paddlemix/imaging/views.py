# SPDX-License-Identifier: Apache-2.0
"""Several views of one object: sheets cut into views, and one layout for all views of an object.

The views of an object stand at one image place, one after the other without anything between them: n views are
n x P feature rows in view order. Several layouts at one place and one layout at each of n neighbouring places give the
same merged rows (the original: training writes one ``<image>``, its inference tools write four).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from paddlemix.imaging.layout import Layout, Size, layout_of, layout_of_frames
from paddlemix.settings.model import ImageConfig, VisionConfig
from paddlemix.utils.errors import ConfigError, DataError

TRAINING, READING = "training", "reading"
ORDERS = (TRAINING, READING)
"""``training``: top left, bottom left, bottom right, top right, as MV-LLaVA was trained with 2 x 2 sheets.
``reading``: row by row, as MV-LLaVA's demo app cuts them (another order than the model learnt)."""

_TRAINING_CELLS = ((0, 0), (1, 0), (1, 1), (0, 1))

Box = tuple[int, int, int, int]
"""(left, top, right, bottom) in pixels, as Pillow crops."""


def sheet_order(grid: int, order: str | None = None) -> tuple[tuple[int, int], ...]:
    """(row, column) of the views of a ``grid`` x ``grid`` sheet in view order.

    None is ``training`` for 2 x 2 sheets and ``reading`` for all others, for which no other order is known.
    """
    if grid < 1:
        raise ConfigError(f"a sheet of {grid} x {grid} views: expected a whole number from 1")
    if order is not None and order not in ORDERS:
        raise ConfigError(f'sheet order "{order}" is not known (known: {", ".join(ORDERS)})')
    if order == TRAINING and grid != 2:
        raise ConfigError(f'sheet order "{TRAINING}" is that of 2 x 2 sheets, not {grid} x {grid}; use "{READING}"')
    if grid == 2 and order != READING:
        return _TRAINING_CELLS
    return tuple((row, column) for row in range(grid) for column in range(grid))


def sheet_boxes(size: Size, grid: int = 2, order: str | None = None) -> list[Box]:
    """Where the views of a square sheet of ``size`` (height, width) pixels lie, in view order.

    (1152, 1152) with 2 x 2 gives four squares of 576. Where the side is no multiple of ``grid``, the later rows and
    columns are a pixel longer. DataError when the sheet is not square or has fewer pixels than views.
    """
    order_of_cells = sheet_order(grid, order)
    height, width = size
    if height != width or height < grid:
        raise DataError(
            f"a sheet of {grid} x {grid} views must be square with at least {grid} pixels a side; "
            f"this one has {width} x {height}"
        )
    cuts = [height * index // grid for index in range(grid + 1)]
    return [(cuts[c], cuts[r], cuts[c + 1], cuts[r + 1]) for r, c in order_of_cells]


def split_sheet(picture: Image.Image, grid: int = 2, order: str | None = None) -> list[Image.Image]:
    """The views of a square sheet, in view order (see ``sheet_boxes``)."""
    return [picture.crop(box) for box in sheet_boxes((picture.height, picture.width), grid, order)]


def joined(layouts: Sequence[Layout], tokens_per_tile: int) -> Layout:
    """One layout whose rows are those of ``layouts`` one after the other; its tiles are theirs in the same order."""
    parts, tiles = [], 0
    for layout in map(_plain, layouts):
        parts.append(np.where(layout.order < 0, layout.order, layout.order + tiles * tokens_per_tile))
        tiles += layout.tiles
    return _frozen(tiles, np.concatenate(parts) if parts else np.empty(0, dtype=np.int64))


def repeated(layout: Layout, times: int) -> Layout:
    """The same image ``times`` times in a row. Its tiles are given to the vision tower once."""
    return layout if times == 1 else _frozen(_plain(layout).tiles, np.tile(layout.order, times))


def _plain(layout: Layout) -> Layout:
    if layout.blend is not None:
        raise ConfigError("views cannot be joined under anyres_max_N, which scales features down; use anyres or pad")
    return layout


def _frozen(tiles: int, order: np.ndarray) -> Layout:
    order.setflags(write=False)
    return Layout(tiles, order)


@dataclass(frozen=True)
class Views:
    """How the images of one object become its views.

    Every image is a sheet of ``grid`` x ``grid`` views (1: it is a view itself) in ``order``; all views together
    stand ``repeat`` times at the place. MV-LLaVA shows a lone image four times, so that every object is as long as
    one of four views.
    """

    grid: int = 1
    repeat: int = 1
    order: str | None = None

    def count(self, pictures: int) -> int:
        """Views at the place for so many images."""
        return pictures * self.grid * self.grid * self.repeat

    def cut(self, pictures: Sequence[Image.Image]) -> list[Image.Image]:
        """The different views, in order: what the vision tower is given."""
        if self.grid == 1:
            return list(pictures)
        return [view for picture in pictures for view in split_sheet(picture, self.grid, self.order)]

    def sizes(self, sizes: Sequence[Size]) -> list[Size]:
        """(height, width) of the views of images of these ``sizes``, without pixels."""
        if self.grid == 1:
            return list(sizes)
        boxes = [box for size in sizes for box in sheet_boxes(size, self.grid, self.order)]
        return [(bottom - top, right - left) for left, top, right, bottom in boxes]

    def layout(self, sizes: Sequence[Size], image: ImageConfig, vision: VisionConfig) -> Layout:
        """The layout of the place for images of these ``sizes``."""
        layouts = [layout_of(size, image, vision) for size in self.sizes(sizes)]
        return repeated(joined(layouts, vision.tokens_per_tile), self.repeat)


@dataclass(frozen=True)
class Film:
    """The images are the frames of one video, in their order, and stand at one place as LLaVA-OneVision has it."""

    def count(self, pictures: int) -> int:
        """Places in the text for so many images."""
        return min(pictures, 1)

    def layout(self, sizes: Sequence[Size], image: ImageConfig, vision: VisionConfig) -> Layout:
        """The layout of the place for frames of these ``sizes``; ConfigError for a model that learnt no videos."""
        require_video(image, vision)
        return layout_of_frames(len(sizes), vision)


def require_video(image: ImageConfig, vision: VisionConfig) -> None:
    """ConfigError for a model that learnt no videos: LLaVA-OneVision's alone (``anyres_max_N``) have a layout."""
    if image.max_tiles is None or vision.select_feature != "patch":
        raise ConfigError("this model has no layout for a video; give its frames as several images")
