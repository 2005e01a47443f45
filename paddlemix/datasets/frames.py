# SPDX-License-Identifier: Apache-2.0
"""The video of a row: frames that lie as images in its list or in a folder. Nothing here decodes a video file."""

import os
import re
from collections.abc import Sequence

from paddlemix.imaging.load import is_address
from paddlemix.utils.errors import DataError

VIDEO_MARK = "<video>"
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
FILMS = (".mp4", ".avi", ".mkv", ".mov", ".webm", ".gif", ".m4v", ".mpg", ".mpeg", ".flv", ".wmv", ".ts")
_DIGITS = re.compile(r"(\d+)")


def frames_of(video: Sequence[str], root: str) -> tuple[str, ...]:
    """Paths of the frames, joined with the image folder ``root``: a list of images, or all those of one folder.

    A folder's frames come in the order of the numbers in their names. DataError for a video file and an empty folder.
    """
    paths = [path if is_address(path) else os.path.join(root, path) for path in video]
    for written, path in zip(video, paths, strict=True):
        if written.lower().endswith(FILMS):
            raise DataError(f"{written}: {_remedy(path)}")
    if len(paths) != 1 or not os.path.isdir(paths[0]):
        return tuple(paths)
    names = sorted((name for name in os.listdir(paths[0]) if name.lower().endswith(PICTURES)), key=_by_number)
    if not names:
        raise DataError(f"{paths[0]}: no frame in it; expected images ({', '.join(PICTURES)})")
    return tuple(os.path.join(paths[0], name) for name in names)


def _by_number(name: str) -> list[tuple[int, int, str]]:
    """Sorts ``2.png`` before ``10.png``."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in _DIGITS.split(name) if part]


def _remedy(path: str) -> str:
    folder = os.path.splitext(path)[0]
    return (
        f'video files are not read; write frames with "mkdir -p {folder} && ffmpeg -i {path} -vf fps=1 '
        f'{folder}/%05d.jpg" and name that folder, or a list of images, under "video"'
    )
