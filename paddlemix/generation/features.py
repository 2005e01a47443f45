# SPDX-License-Identifier: Apache-2.0
"""The images of conversations: their visual tokens are computed once and kept, up to a limit in bytes."""

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import paddle
from PIL.Image import Image

from paddlemix.imaging.layout import Layout
from paddlemix.imaging.processor import ImageProcessor, Processed

DEFAULT_BYTES = 512 << 20
"""Limit of what a process keeps. Five tiles of an image of LLaVA-1.6-7B take 47 MB in float32, half in bfloat16."""


@dataclass(frozen=True, eq=False)
class Picture:
    """An image of a conversation: what identifies it, where its visual tokens go, and its features ``[N, P, D]``."""

    key: bytes
    layout: Layout
    features: paddle.Tensor
    among: "Picture | None" = None
    """The image as one of several, where that is another (``ImageProcessor.among``)."""

    @property
    def length(self) -> int:
        """Positions that the image takes in the sequence."""
        return self.layout.length


@dataclass(frozen=True, eq=False)
class Prepared:
    """An image that the vision tower has yet to see: what identifies it, and its pixels [N, 3, S, S] with layout.

    It is made without paddle, so by any thread (``prepared``).
    """

    key: bytes
    processed: Processed
    among: "Prepared | None" = None


class FeatureCache:
    """Features of the images that were used last, shared by everything that asks one model.

    Whoever uses an image holds it, so an entry that makes room is never taken from a running answer. ``encoded`` and
    ``reused`` count images. A cache belongs to one model and one thread.
    """

    def __init__(self, max_bytes: int = DEFAULT_BYTES) -> None:
        self.max_bytes = max_bytes
        self.bytes = self.encoded = self.reused = 0
        self._kept: OrderedDict[bytes, Picture] = OrderedDict()

    def get(self, key: bytes, make: Callable[[], Picture]) -> Picture:
        """The image of that key, made now if it is not there. Older ones make room for it."""
        found = self._kept.get(key)
        if found is not None:
            self.reused += 1
            self._kept.move_to_end(key)
            return found
        made = make()
        self.encoded += 1
        size = size_of(made)
        if size <= self.max_bytes:
            self._kept[key] = made
            self.bytes += size
        while self.bytes > self.max_bytes:
            _, old = self._kept.popitem(last=False)
            self.bytes -= size_of(old)
        return made

    def __len__(self) -> int:
        return len(self._kept)


def size_of(picture: Picture) -> int:
    """Bytes of an image's features."""
    own = int(picture.features.size) * picture.features.element_size()
    return own if picture.among is None else own + size_of(picture.among)


def key_of(image: Image, processor: ImageProcessor) -> bytes:
    """What the features depend on: the pixels, the size that they are arranged in, and the preprocessing."""
    digest = hashlib.sha256(f"{processor.image} {processor.vision} {image.mode} {image.size}".encode())
    digest.update(image.tobytes())
    return digest.digest()


def prepared(image: Image, processor: ImageProcessor) -> Prepared:
    """An RGB image as the tower wants it, also as one of several where that is another."""
    several = processor.among(2)
    among = None if several is processor else Prepared(key_of(image, several), several(image))
    return Prepared(key_of(image, processor), processor(image), among)
