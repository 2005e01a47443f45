# SPDX-License-Identifier: Apache-2.0
"""Rows of MV-LLaVA's files (Bootstrap3D): which images a row means, and how they become the views of one object.

The kind of a row is written in its id, as in the original (train_mv.py); the spellings are part of the format.

    cap3d_...   ``image`` names an object: Cap3D_imgs_view{0,1,4,5}/<image>, four views in this order, with any ending
    sv3d_...    ``image`` is a square sheet (1152 pixels): top left, bottom left, bottom right, top right
    zeropp_...  ``image`` is a square sheet of 640 pixels, in the same order
    others      a lone image stands ``single_view_repeat`` times; a list of images are views in their order
"""

import os
from collections.abc import Sequence
from functools import lru_cache

from paddlemix.imaging.load import is_address
from paddlemix.imaging.views import Views
from paddlemix.utils.errors import DataError

NAME = "mv_dataset"
"""``name`` of a data set entry whose rows are read so."""

CAP3D, SV3D, ZEROPP = "cap3d_", "sv3d_", "zeropp_"
CAP3D_FOLDER = "Cap3D_imgs_view{}"
CAP3D_VIEWS = (0, 1, 4, 5)
"""Of Cap3D's eight views, the four that MV-LLaVA looks at, in its order."""

ENDINGS = (".jpg", "", ".png", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".JPG", ".PNG", ".JPEG")
"""Endings of a view's file, the original's first. Its tools take a name as it stands."""

CAP3D_BASE = os.path.join("data", "obj_demo")
_LLAVA_BASE = os.path.join("data", "llava", "data")
_SHARE4V_BASE = os.path.join("data", "sharegpt4v", "data")
TREES = (CAP3D_BASE, _LLAVA_BASE, _SHARE4V_BASE)
"""Folders of the original's own tree, below the image folder."""
_LLAVA_PARTS = ("ocr_vqa", "vg", "text_vqa", "gqa")


def views_of(name: str, images: Sequence[str], root: str, repeat: int) -> tuple[tuple[str, ...], Views]:
    """Paths (joined with the image folder ``root``) and views of a row with the id ``name``.

    ``root`` may be the folder of the images, or a folder that holds the original's own tree (``data/obj_demo``,
    ``data/sharegpt4v/data``, ``data/llava/data``). DataError when a row of a known kind has several images.
    """
    kind = next((kind for kind in (CAP3D, SV3D, ZEROPP) if kind in name), None)
    if kind is None:
        single = len(images) == 1
        return tuple(_single(image, root) for image in images), Views(repeat=repeat if single else 1)
    if len(images) != 1:
        raise DataError(f'"{kind}" rows name one object; this one lists {len(images)} images')
    if kind == CAP3D:
        return tuple(picture_of(folder, images[0]) for folder in _cap3d_folders(root)), Views()
    return (_joined(root, images[0]),), Views(grid=2)


def picture_of(folder: str, name: str) -> str:
    """Path of the image of an object in ``folder``, with the first ending that is there (``.jpg`` when none is)."""
    path = os.path.join(folder, name)
    # isfile: a name that is no possible file name is a file that is not there.
    return path + next((ending for ending in ENDINGS if os.path.isfile(path + ending)), ENDINGS[0])


def _joined(root: str, image: str) -> str:
    return image if is_address(image) else os.path.join(root, image)


def _cap3d_folders(root: str) -> list[str]:
    first = CAP3D_FOLDER.format(CAP3D_VIEWS[0])
    inside = not _is_folder(os.path.join(root, first)) and _is_folder(os.path.join(root, CAP3D_BASE, first))
    base = os.path.join(root, CAP3D_BASE) if inside else root
    return [os.path.join(base, CAP3D_FOLDER.format(view)) for view in CAP3D_VIEWS]


def _single(image: str, root: str) -> str:
    """An image that is no object: in the original's tree its base folder follows from words in its path."""
    if is_address(image) or not _is_folder(os.path.join(root, _SHARE4V_BASE)):
        return _joined(root, image)
    base = _LLAVA_BASE if any(part in image for part in _LLAVA_PARTS) else _SHARE4V_BASE
    return os.path.join(root, base, image)


@lru_cache(maxsize=1024)
def _is_folder(path: str) -> bool:
    # Asked for every row of a file of a million rows, with a handful of answers.
    return os.path.isdir(path)
