# SPDX-License-Identifier: Apache-2.0
"""From an RGB image to tiles of pixels, equal to the original's CLIP preprocessing bit for bit.

Every step up to the crop is uint8; the floats are a table of 256 entries per channel. Pillow 13 resizes tall
images differently from Pillow 9 to 12, so exact equality holds between machines with the same side of that line.
"""

from functools import lru_cache

import numpy as np
from PIL import Image

from paddlemix.imaging.layout import choose_resolution, fit_inside, tile_grid
from paddlemix.settings.model import ImageConfig

RESCALE = 1 / 255
_STRIP = 1 << 20
"""Pixels of a canvas that are held at a time."""


def resize_short_side(picture: Image.Image, side: int) -> Image.Image:
    """Bicubic resize so that the short side is ``side`` pixels; the long one is cut to an integer, not rounded."""
    width, height = picture.size
    short, long = min(width, height), max(width, height)
    other = int(side * long / short)
    target = (side, other) if width <= height else (other, side)
    return picture.resize(target, resample=Image.Resampling.BICUBIC)


def centre_crop(pixels: np.ndarray, side: int) -> np.ndarray:
    """The middle ``side`` x ``side`` pixels of uint8 ``pixels`` [h, w, 3]; black is added where it is smaller."""
    height, width = pixels.shape[:2]
    if height < side or width < side:
        high, wide = max(height, side), max(width, side)
        top, left = -((height - high) // 2), -((width - wide) // 2)
        canvas = np.zeros((high, wide, 3), dtype=pixels.dtype)
        canvas[top : top + height, left : left + width] = pixels
        # The window keeps the place it had in the small image, as transformers' center_crop does it.
        top, left = top + (height - side) // 2, left + (width - side) // 2
        return canvas[max(0, top) : top + side, max(0, left) : left + side]
    top, left = (height - side) // 2, (width - side) // 2
    return pixels[top : top + side, left : left + side]


def background_colour(image: ImageConfig) -> tuple[int, int, int]:
    """Colour of the canvas in ``pad`` mode: ``int(mean * 255)``, for CLIP (122, 116, 104)."""
    red, green, blue = (int(value * 255) for value in image.mean)
    return red, green, blue


def expand_to_square(picture: Image.Image, colour: tuple[int, int, int]) -> Image.Image:
    """The image in the middle of a square canvas of its longer side."""
    width, height = picture.size
    if width == height:
        return picture
    side = max(width, height)
    canvas = Image.new("RGB", (side, side), colour)
    canvas.paste(picture, ((side - width) // 2, (side - height) // 2))
    return canvas


def resize_on_square(picture: Image.Image, colour: tuple[int, int, int], side: int) -> Image.Image:
    """What ``expand_to_square`` resized to ``side`` pixels (bicubic) gives, without the canvas as a whole.

    An image of 16384 x 82 pixels has a canvas of 268 million. Pillow resizes rows first and columns then, so the rows
    of the canvas can be taken a strip at a time; rows of one colour stay that colour.
    """
    width, height = picture.size
    full = max(width, height)
    left, top = (full - width) // 2, (full - height) // 2
    narrow = Image.new("RGB", (side, full), colour)
    rows = max(1, _STRIP // full)
    for start in range(0, height, rows):
        end = min(height, start + rows)
        strip = Image.new("RGB", (full, end - start), colour)
        strip.paste(picture.crop((0, start, width, end)), (left, 0))
        narrow.paste(strip.resize((side, end - start), resample=Image.Resampling.BICUBIC), (0, top + start))
    return narrow.resize((side, side), resample=Image.Resampling.BICUBIC)


def resize_and_pad(picture: Image.Image, target: tuple[int, int]) -> Image.Image:
    """The image scaled into ``target`` (width, height) and centred on black."""
    width, height = picture.size
    new_width, new_height = fit_inside((height, width), target)
    resized = picture.resize((new_width, new_height), resample=Image.Resampling.BICUBIC)
    canvas = Image.new("RGB", target, (0, 0, 0))
    canvas.paste(resized, ((target[0] - new_width) // 2, (target[1] - new_height) // 2))
    return canvas


def cut_tiles(picture: Image.Image, side: int) -> list[Image.Image]:
    """Tiles of ``side`` pixels, row by row."""
    width, height = picture.size
    return [
        picture.crop((left, top, left + side, top + side))
        for top in range(0, height, side)
        for left in range(0, width, side)
    ]


def tiles_of(picture: Image.Image, image: ImageConfig) -> list[Image.Image]:
    """The images that become one tile each: the whole and its parts for anyres, else (and with ``one_tile``) one."""
    height_width = (picture.height, picture.width)
    if tile_grid(height_width, image) is None:
        if image.aspect == "square":
            return [picture]
        return [resize_on_square(picture, background_colour(image), image.resize_size)]
    whole = picture.resize((image.resize_size, image.resize_size), resample=Image.Resampling.BICUBIC)
    padded = resize_and_pad(picture, choose_resolution(height_width, image.grid_pinpoints))
    return [whole, *cut_tiles(padded, image.crop_size)]


def to_uint8(picture: Image.Image, image: ImageConfig) -> np.ndarray:
    """One tile as uint8 [S, S, 3]: short side to ``resize_size``, centre crop to ``crop_size``; or stretched to it."""
    if image.stretch:
        return np.asarray(picture.resize((image.crop_size, image.crop_size), resample=Image.Resampling.BICUBIC))
    return centre_crop(np.asarray(resize_short_side(picture, image.resize_size)), image.crop_size)


@lru_cache(maxsize=8)
def _table(mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
    # The original multiplies in double, rounds to float32, and subtracts and divides in float32.
    values = (np.arange(256, dtype=np.uint8) * RESCALE).astype(np.float32)
    shifted = values[None, :] - np.asarray(mean, dtype=np.float32)[:, None]
    return shifted / np.asarray(std, dtype=np.float32)[:, None]


def normalise(tiles: np.ndarray, image: ImageConfig) -> np.ndarray:
    """uint8 ``tiles`` [N, S, S, 3] to float32 [N, 3, S, S]: ``(value / 255 - mean) / std``."""
    table = _table(tuple(image.mean), tuple(image.std))
    out = np.empty((len(tiles), 3, *tiles.shape[1:3]), dtype=np.float32)
    for channel in range(3):
        np.take(table[channel], tiles[..., channel], out=out[:, channel])
    return out


def preprocess(picture: Image.Image, image: ImageConfig) -> np.ndarray:
    """All tiles of an RGB ``picture`` as float32 [N, 3, S, S]."""
    return normalise(np.stack([to_uint8(tile, image) for tile in tiles_of(picture, image)]), image)
