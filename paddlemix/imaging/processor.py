# SPDX-License-Identifier: Apache-2.0
"""One image in, pixels and layout out: the only thing that training, chat and evaluation need of this room."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from paddlemix.imaging.layout import Layout, Size, layout_of, layout_of_frames
from paddlemix.imaging.load import ImageSource
from paddlemix.imaging.preprocess import preprocess
from paddlemix.imaging.views import require_video
from paddlemix.settings.model import ImageConfig, VisionConfig
from paddlemix.utils.errors import ConfigError, DataError


@dataclass(frozen=True, eq=False)
class Processed:
    """``pixels`` float32 [N, 3, S, S], the ``layout`` of their N * P feature rows, the ``size`` (height, width)."""

    pixels: np.ndarray
    layout: Layout
    size: Size


@dataclass(frozen=True, eq=False)
class Frames:
    """Pictures of a video in their order: paths, addresses, bytes or PIL images. A video takes one place."""

    pictures: Sequence[ImageSource]


class ImageProcessor:
    """Preprocessing for one vision tower. Holds no state besides its settings."""

    def __init__(self, image: ImageConfig, vision: VisionConfig) -> None:
        if image.crop_size != vision.image_size:
            raise ConfigError(
                f"crop_size is {image.crop_size} but the vision tower's image_size is {vision.image_size}; "
                "a tile must have the side that the tower was built for"
            )
        self.image = image
        self.vision = vision

    def among(self, count: int) -> "ImageProcessor":
        """The processor of an image that is one of ``count`` in its conversation.

        LLaVA-OneVision (``anyres_max_N``) cuts only a lone image into tiles; several are one padded tile each, closed
        by a newline. For all other models every image is as if it were alone.
        """
        if count < 2 or self.image.max_tiles is None:
            return self
        return ImageProcessor(replace(self.image, one_tile=True), self.vision)

    def __call__(self, picture: Image.Image) -> Processed:
        """Pixels, layout and size of an RGB image (``load.load_image`` gives one). DataError for another mode."""
        if picture.mode != "RGB":
            raise DataError(f"this image has mode {picture.mode}; open it with imaging.load.load_image")
        size = (picture.height, picture.width)
        return Processed(preprocess(picture, self.image), self.layout(size), size)

    def video(self, pictures: Sequence[Image.Image]) -> Processed:
        """Pixels and layout of the frames of a video (RGB), and the size of the first.

        ConfigError for a model that learnt no videos: only LLaVA-OneVision's (``anyres_max_N``) has a layout for them.
        """
        require_video(self.image, self.vision)
        if not pictures:
            raise DataError("a video without frames; give at least one picture")
        image = replace(self.image, aspect="square", stretch=True)
        pixels = np.concatenate([preprocess(picture, image) for picture in pictures])
        size = (pictures[0].height, pictures[0].width)
        return Processed(pixels, layout_of_frames(len(pictures), self.vision), size)

    def layout(self, size: Size) -> Layout:
        """Layout of an image of ``size`` (height, width), without its pixels."""
        return layout_of(size, self.image, self.vision)
