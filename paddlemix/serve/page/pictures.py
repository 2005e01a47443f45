# SPDX-License-Identifier: Apache-2.0
"""Pictures that a browser has sent: checked, turned, brought to the shape that was asked for, and shown in a row."""

import base64
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from paddlemix.imaging.load import LIMITS, is_turned, load_image

MODES = ("Default", "Pad", "Crop", "Resize")
"""LLaVA's choices. Default: the file as it is, which the model brings to its own shape."""
BACKGROUND = (122, 116, 104)
"""What Pad fills with: the mean of CLIP's pictures, as LLaVA's page does."""
LARGEST = 2304
"""Longest side in pixels of a picture that is written anew: 6 x 6 tiles of 384, the most that a model here looks at."""
THUMB = 384
"""Longest side in pixels of what the conversation shows."""
_IN_A_ROW = 4
_GAP = 8


@dataclass(frozen=True)
class Picture:
    """The file that the worker is sent, and that of a small image of what it holds."""

    sent: Path
    small: Path

    def address(self) -> str:
        """The ``data:`` address of the picture; FileNotFoundError when it is no longer kept."""
        data = self.sent.read_bytes()
        return f"data:image/any;base64,{base64.b64encode(data).decode()}"


def taken(path: Path, mode: str, folder: Path) -> Picture:
    """The picture of an uploaded file; what is made of it is written into ``folder``. DataError for a bad file.

    The EXIF data turn it, as a browser shows it. A file that needs no change is sent as it came, so that an answer is
    that of the chat command.
    """
    picture = load_image(path, LIMITS, transpose_exif=True, name=path.name)
    changed = shaped(picture, mode)
    sent = path if changed is picture and not is_turned(path, LIMITS, name=path.name) else _written(changed, folder)
    return Picture(sent, _saved(_within(changed, THUMB), folder))


def in_a_row(pictures: Sequence[Picture], folder: Path) -> Path | None:
    """A file with all pictures side by side, in rows of four; None without any. FileNotFoundError when one is gone."""
    if not pictures:
        return None
    most = THUMB if len(pictures) == 1 else THUMB // 2
    small = []
    for picture in pictures:
        with Image.open(picture.small) as image:
            small.append(_within(image, most))
    rows = [small[place : place + _IN_A_ROW] for place in range(0, len(small), _IN_A_ROW)]
    heights = [max(one.height for one in row) for row in rows]
    width = max(sum(one.width for one in row) + _GAP * (len(row) - 1) for row in rows)
    found = Image.new("RGBA", (width, sum(heights) + _GAP * (len(rows) - 1)))
    top = 0
    for row, height in zip(rows, heights, strict=True):
        left = 0
        for one in row:
            found.paste(one, (left, top))
            left += one.width + _GAP
        top += height + _GAP
    return _saved(found, folder)


def shaped(picture: Image.Image, mode: str) -> Image.Image:
    """The picture after the choice ``mode``: a square one, or itself under Default and where it is square already."""
    side, short = max(picture.size), min(picture.size)
    if mode == "Default" or side == short:
        return picture
    if mode == "Resize":
        side = min(side, LARGEST)
        return picture.resize((side, side), Image.Resampling.BICUBIC)
    if mode == "Crop":
        left, top = (picture.width - short) // 2, (picture.height - short) // 2
        return picture.crop((left, top, left + short, top + short))
    found = Image.new("RGB", (side, side), BACKGROUND)
    found.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return found


def _written(picture: Image.Image, folder: Path) -> Path:
    return _saved(_within(picture, LARGEST), folder)


def _within(picture: Image.Image, most: int) -> Image.Image:
    found = picture.copy()
    found.thumbnail((most, most), Image.Resampling.BICUBIC)
    return found


def _saved(picture: Image.Image, folder: Path) -> Path:
    with tempfile.NamedTemporaryFile(dir=folder, suffix=".png", delete=False) as stream:
        picture.save(stream, "PNG")
    return Path(stream.name)
