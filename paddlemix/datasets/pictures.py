# SPDX-License-Identifier: Apache-2.0
"""Which files the images of a row may be, how they are opened, and the look at all of them before a run."""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

from PIL.Image import Image

from paddlemix.datasets.multiview import TREES
from paddlemix.datasets.sample import Sample
from paddlemix.imaging.layout import Size
from paddlemix.imaging.load import OWN_LIMITS, ImageLimits, image_size, is_address, load_image
from paddlemix.utils import addresses
from paddlemix.utils.errors import DataError
from paddlemix.utils.paths import begins_at

NONE, EXISTS, HEADER, DECODE, AUTO = "none", "exists", "header", "decode", "auto"
"""How all images are looked at before a run (``check_images``)."""
MANY = 100_000
"""Rows above which ``auto`` looks only whether the files are there, for opening them would take minutes."""

_THREADS = 16
"""Opening a file waits for the disk or the network most of the time."""
_PORTION = 64
"""Images that a thread takes at a time."""
_ENOUGH = 100
"""Bad images after which the look ends when the first one stops the run anyway."""

Progress = Callable[[int, int], None]
"""Is told how many images of how many have been looked at."""


@dataclass(frozen=True)
class PictureRules:
    """How a run reads images. The guard of the image folder is against rows, not against what the user put into it.

    A row must not climb out of the folder that an ``image_folder`` names, by ``..`` or an absolute path, unless
    ``allow_outside_root``; links at the top of the folder are the user's and are followed. Without an ``image_folder``
    there is nothing to climb out of.
    """

    limits: ImageLimits = OWN_LIMITS
    allow_outside_root: bool = False
    allow_image_urls: bool = False
    exif_rotation: bool = False

    def load(self, sample: Sample, image: str) -> Image:
        """The image as RGB. DataError names row and file."""
        path = self.path(sample, image)
        with _named(sample):
            return load_image(path, self.limits, transpose_exif=self.exif_rotation, name=f"{sample.where}: {path}")

    def size(self, sample: Sample, image: str) -> Size:
        """(height, width) in pixels from the header. The image must not be an http address."""
        path = self.path(sample, image)
        return image_size(path, self.limits, transpose_exif=self.exif_rotation, name=f"{sample.where}: {path}")

    def present(self, sample: Sample, image: str) -> None:
        """DataError for a file that is not there, in the words of ``size``. The image must not be an http address."""
        path = self.path(sample, image)
        if is_address(image) or not os.path.isfile(path):
            self.size(sample, image)

    def path(self, sample: Sample, image: str) -> str:
        """``image`` if it may be read. DataError names the row, the reason and the key that allows it."""
        if is_address(image):
            if is_remote(image) and not self.allow_image_urls:
                raise DataError(
                    f"{sample.where}: {image}: addresses are not read; "
                    "download the image, or set allow_image_urls to true"
                )
            if is_remote(image):
                with _named(sample):
                    addresses.parse(image)
            return image
        if sample.image_root and not self.allow_outside_root:
            _check_inside(sample, image)
        return image


PLAIN_RULES = PictureRules()


@contextlib.contextmanager
def _named(sample: Sample) -> Iterator[None]:
    """Errors of the network name the address; here they get the row in front."""
    try:
        yield
    except DataError as error:
        raise error if sample.where in str(error) else DataError(f"{sample.where}: {error}") from error


def is_remote(image: str) -> bool:
    """Whether an image is an http address: such an image is opened when its row is used, and not before."""
    return is_address(image) and image[:5].lower() != "data:"


def _check_inside(sample: Sample, image: str) -> None:
    root, target = _real_folder(os.path.abspath(sample.image_root)), _real(image)
    if _within(target, root):
        return
    ways = [os.path.relpath(image, start).split(os.sep) for start in (sample.image_root, root)]
    steps = next((way for way in ways if way[0] != os.pardir), None)
    if steps is None:
        # A row that climbs by ".." does so from any folder; an absolute path lies where it lies.
        climbs = image.startswith(os.path.join(sample.image_root, ""))
        above = "" if climbs else "set image_folder to a folder above it, or leave it out, or "
        raise DataError(
            f"{sample.where}: {image} lies outside of the image folder {root}; {above}set allow_outside_root to true"
        )
    links = [link for link in _links_at_the_top(sample, steps) if _within(target, os.path.realpath(link))]
    if not links:
        raise DataError(
            f"{sample.where}: {image} is {target} by a link and lies outside of the image folder {root}. Links at the "
            "top of that folder are followed; for others set allow_outside_root to true"
        )


def _real(path: str) -> str:
    """``realpath``, with one question to the system a file: the images of a million rows lie in a few folders."""
    folder, name = os.path.split(path)
    if os.pardir in path or not name or os.path.islink(path):
        return os.path.realpath(path)
    return os.path.join(_real_folder(os.path.abspath(folder)), name)


@lru_cache(maxsize=4096)
def _real_folder(path: str) -> str:
    return os.path.realpath(path)


def _links_at_the_top(sample: Sample, steps: Sequence[str]) -> Iterable[str]:
    """The links on the way to an image that lie at the top of its folder, or of the trees that MV-LLaVA's rows use."""
    trees = [tree.split(os.sep) for tree in TREES] if sample.views else []
    for depth in range(len(steps)):
        way = list(steps[:depth])
        place = os.path.join(sample.image_root, *steps[: depth + 1])
        if (not way or any(tree[:depth] == way for tree in trees)) and os.path.islink(place):
            yield place


def _within(target: str, root: str) -> bool:
    return os.path.commonpath([root, target]) == root


def check_folders(samples: Iterable[Sample]) -> None:
    """DataError for an image folder that is not there, though rows name images in it."""
    roots = {sample.image_root: sample for sample in samples if any(not is_address(image) for image in sample.images)}
    for root, sample in roots.items():
        if root and not os.path.isdir(root):
            raise DataError(
                f'{root}: no such image folder ("image_folder"); {sample.where} has images{begins_at(root)}'
            )


def check_pictures(
    samples: Sequence[Sample],
    rules: PictureRules,
    how: str = HEADER,
    *,
    every: bool = False,
    share: tuple[int, int] = (0, 1),
    progress: Progress | None = None,
    known: set[int] | None = None,
) -> dict[str, DataError]:
    """What is wrong with the images of ``samples``: the first fault of each row, by the row's ``where``.

    Each file is looked at once, by several threads: its header, or all of it with ``decode``. Of http addresses only
    the spelling is. ``share`` (rank, world): the part of the files that this process takes. Without ``every`` the look
    ends early when much is wrong. ``known``: hashes of images found good in an earlier call, which this one adds to.
    """
    if how == NONE:
        return {}
    users: dict[str, list[Sample]] = {}
    for sample in samples:
        for image in sample.images:
            users.setdefault(image, []).append(sample)
    rank, world = share
    todo = list(users.items())[rank::world]
    look = {DECODE: rules.load, EXISTS: rules.present}.get(how, rules.size)
    faults: dict[str, DataError] = {}
    seen = set() if known is None else known

    def portion(pairs: Sequence[tuple[str, list[Sample]]]) -> list[tuple[str, DataError]]:
        return [fault for image, rows in pairs for fault in _faults_of(image, rows, rules, look, seen)]

    portions = [todo[start : start + _PORTION] for start in range(0, len(todo), _PORTION)]
    done = 0
    with ThreadPoolExecutor(_THREADS) as pool:
        # Whether a file is there is said at once; threads would only wait for each other.
        results = map(portion, portions) if how == EXISTS else pool.map(portion, portions)
        try:
            for pairs, found in zip(portions, results, strict=True):
                for where, error in found:
                    faults.setdefault(where, error)
                done += len(pairs)
                if progress is not None:
                    progress(done, len(todo))
                if len(faults) >= _ENOUGH and not every:
                    break
        finally:
            pool.shutdown(cancel_futures=True)
    return faults


def _faults_of(
    image: str, rows: Sequence[Sample], rules: PictureRules, look: Callable[[Sample, str], object], known: set[int]
) -> list[tuple[str, DataError]]:
    """The fault of an image in every row that shows it; each has its own words, for they name the row."""
    found = []
    number = hash(image)
    for sample in rows:
        try:
            # The file is the same for all rows, but whether a row may have it depends on the folder that it names.
            rules.path(sample, image) if number in known or is_remote(image) else look(sample, image)
            known.add(number)
        except DataError as error:
            found.append((sample.where, error))
    return found
