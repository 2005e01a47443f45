# SPDX-License-Identifier: Apache-2.0
"""From a sample to ids, labels and pixels; the length of a sample without decoding an image."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from PIL.Image import Image

from paddlemix.datasets.pictures import PLAIN_RULES, PictureRules, is_remote
from paddlemix.datasets.sample import Sample
from paddlemix.imaging.layout import Layout as ImageLayout
from paddlemix.imaging.layout import Size, token_count
from paddlemix.imaging.processor import ImageProcessor
from paddlemix.imaging.views import Film, Views, require_video
from paddlemix.text import chat_template
from paddlemix.text.messages import ChatFormat, Message, placed_messages
from paddlemix.text.render import Rendered, render
from paddlemix.text.tokenizer import Tokenizer
from paddlemix.utils.constants import IGNORE_INDEX, IMAGE_TOKEN, IMAGE_TOKEN_INDEX
from paddlemix.utils.errors import ConfigError, DataError


@dataclass(frozen=True, eq=False)
class Encoded:
    """A sample ready to be merged into a batch.

    ``ids`` and ``labels`` int64 [T] before merging, ``pixels`` float32 [N, 3, S, S] (None without images), one
    layout for each image place. ``length`` counts merged positions, ``truncated`` those that were cut off. ``segments``
    int64 [T] number the samples of a packed row (None: one sample).
    """

    ids: np.ndarray
    labels: np.ndarray
    pixels: np.ndarray | None
    layouts: tuple[ImageLayout, ...]
    length: int
    where: str = ""
    truncated: int = 0
    segments: np.ndarray | None = None


class Rows(Protocol):
    """The rows of a run by their numbers: ``ChatDataset``, or another set that gives samples (None: a row left out)."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Encoded | None: ...


@dataclass(frozen=True)
class Measured:
    """What a sample costs, from its text and the headers of its images.

    ``text`` and ``visual`` positions of the whole sample, the positions that ``max_length`` keeps (``length``), and how
    many of those are learnt.
    """

    text: int
    visual: int
    length: int
    learnt: int

    @property
    def cut(self) -> int:
        """Positions beyond ``max_length``."""
        return self.text + self.visual - self.length


class NoLabelError(DataError):
    """Nothing of a row is learnt."""


class SampleEncoder:
    """Encodes samples of any source with one tokenizer, one processor and one template.

    ``template`` must be the training form (``templates.get(name, training=True)``). A sample longer than
    ``max_length`` keeps its head, as in the original, but the cut never divides an image: one that does not fit whole
    is left out with all that follows. ``specials`` True parses special tokens written in the data, as the original
    does; by default a written "</s>" is text. ``pictures``: which files may be opened, and how.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        processor: ImageProcessor | None,
        template: ChatFormat,
        *,
        max_length: int,
        use_im_start_end: bool = False,
        specials: bool = False,
        pictures: PictureRules = PLAIN_RULES,
    ) -> None:
        self.tokenizer = tokenizer
        self.processor = processor
        self.template = template
        self.max_length = max_length
        self.use_im_start_end = use_im_start_end
        self.specials = specials
        self.pictures = pictures
        self._chat_templates: dict[str, ChatFormat] = {}

    def __call__(self, sample: Sample) -> Encoded:
        """Ids, labels and pixels. DataError names the sample when it cannot be trained on."""
        rendered = self.render(sample)
        places = self._places(sample)
        layouts = [layout for _, layout in places]
        ids, labels, length, cut = self._cut(sample, rendered, layouts)
        used = int((ids == IMAGE_TOKEN_INDEX).sum())
        parts = self._pixels(sample, [pictures for pictures, _ in places[:used]], len(layouts))
        pixels = np.concatenate(parts) if parts else None
        return Encoded(ids, labels, pixels, tuple(layouts[:used]), length, sample.where, cut)

    def _pixels(self, sample: Sample, places: Sequence[list[Image]], among: int) -> list[np.ndarray]:
        """Float32 [N, 3, S, S] of the images at each place, one of ``among`` places."""
        if isinstance(sample.views, Film):
            return [self.processor.video(frames).pixels for frames in places]
        processor = self.processor and self.processor.among(among)
        return [processor(picture).pixels for pictures in places for picture in pictures]

    def measure(self, sample: Sample, sizes: Sequence[Size]) -> Measured:
        """What ``self(sample)`` would cost, from the ``sizes`` of its images (``size_of``); opens none of them.

        DataError for what ``self(sample)`` would refuse.
        """
        rendered = self.render(sample)
        layouts = self._layouts(sample, sizes)
        _, labels, length, cut = self._cut(sample, rendered, layouts)
        visual = sum(len(layout.order) for layout in layouts)
        return Measured(length + cut - visual, visual, length, int((labels[1:] != IGNORE_INDEX).sum()))

    def _cut(
        self, sample: Sample, rendered: Rendered, layouts: Sequence[ImageLayout]
    ) -> tuple[np.ndarray, np.ndarray, int, int]:
        """Ids and labels (int64 [T]) that ``max_length`` keeps, their merged length, merged positions cut off."""
        ids, labels = np.array(rendered.ids, dtype=np.int64), np.array(rendered.labels, dtype=np.int64)
        kept, length, cut = _fit(ids, layouts, self.max_length)
        ids, labels = ids[:kept], labels[:kept]
        if not (labels[1:] != IGNORE_INDEX).any():
            raise NoLabelError(f"{sample.where}: {self._why_nothing_is_learnt(cut, length + cut)}")
        return ids, labels, length, cut

    def length(self, sample: Sample) -> int:
        """Merged positions of the whole sample, before ``max_length``. Reads at most the headers of its images."""
        ids = np.array(self.render(sample).ids, dtype=np.int64)
        return int((ids != IMAGE_TOKEN_INDEX).sum()) + self._image_tokens(sample)

    def _places(self, sample: Sample) -> list[tuple[list[Image], ImageLayout]]:
        """For each image place the images that are encoded for it, and the layout of their rows."""
        pictures = [self.pictures.load(sample, image) for image in sample.images]
        layouts = self._layouts(sample, [(picture.height, picture.width) for picture in pictures])
        if sample.views is None:
            return [([picture], layout) for picture, layout in zip(pictures, layouts, strict=True)]
        shown = pictures if isinstance(sample.views, Film) else sample.views.cut(pictures)
        return [(shown, layout) for layout in layouts]

    def _layouts(self, sample: Sample, sizes: Sequence[Size]) -> list[ImageLayout]:
        """The layout of each image place; ``sizes`` are (height, width) in pixels of the sample's images."""
        if sample.views is None or not sizes:
            return [self.processor.among(len(sizes)).layout(size) for size in sizes]
        try:
            return [sample.views.layout(sizes, self.processor.image, self.processor.vision)]
        except DataError as error:
            raise DataError(f"{sample.where}: {', '.join(sample.images)}: {error}") from error

    def messages(self, sample: Sample) -> list[Message]:
        """The conversation as the template takes it. DataError when turns or images do not fit."""
        messages = placed_messages(
            sample.messages,
            layout=self.layout_of(sample.chat_template),
            images=sample.places,
            use_im_start_end=self.use_im_start_end,
        )
        places = sum(message.text.count(IMAGE_TOKEN) for message in messages)
        if sample.images and places != sample.places:
            raise DataError(f'{sample.where}: {places} "{IMAGE_TOKEN}" in the text but {self._expected(sample)}')
        if sample.images and self.processor is None:
            raise DataError(f"{sample.where}: has images, but the model has no vision tower")
        if isinstance(sample.views, Film):
            try:
                require_video(self.processor.image, self.processor.vision)
            except ConfigError as error:
                raise DataError(f"{sample.where}: {error}") from error
        return messages

    def render(self, sample: Sample) -> Rendered:
        """Ids and labels of the whole sample, before merging. Without images a written ``<image>`` is text."""
        try:
            return render(
                self.layout_of(sample.chat_template),
                self.messages(sample),
                self.tokenizer,
                answer_open=False,
                specials=self.specials,
                images=bool(sample.images),
            )
        except DataError as error:
            raise _named(error, sample) from error

    def check(self, sample: Sample) -> None:
        """What can be said without tokenizing: turns, roles, number of images, an answer to learn."""
        try:
            segments = self.layout_of(sample.chat_template).segments(self.messages(sample), answer_open=False)
        except DataError as error:
            raise _named(error, sample) from error
        if not any(part.learns and part.text for part in segments):
            raise NoLabelError(f"{sample.where}: no answer to learn; every assistant text is empty or has weight 0")

    def layout_of(self, path: str | None) -> ChatFormat:
        """The layout of a chat_template.json; for None, that of rows without one."""
        if path is None:
            return self.template
        if path not in self._chat_templates:
            self._chat_templates[path] = chat_template.load(path)
        return self._chat_templates[path]

    def _expected(self, sample: Sample) -> str:
        count = len(sample.images)
        if isinstance(sample.views, Film):
            return f"one video of {count} frames, which stand together at one place"
        if sample.views:
            return f"the {sample.views.count(count)} views of one object, which stand together at one place"
        return f"{count} images; each needs the other"

    def _image_tokens(self, sample: Sample) -> int:
        count = len(sample.images) if sample.views is None else 1
        config = self.processor.among(count).image if self.processor else None
        views = sample.views or Views()
        if config is None or config.aspect != "anyres":
            per_tile = self.processor.vision.tokens_per_tile if self.processor else 0
            return views.count(len(sample.images)) * per_tile
        sizes = [self.size_of(sample, image) for image in sample.images]
        if sample.views is None:
            return sum(token_count(size, config, self.processor.vision) for size in sizes)
        return views.layout(sizes, config, self.processor.vision).length

    def size_of(self, sample: Sample, image: str) -> Size:
        """(height, width) of an image in pixels, from its header. DataError names row and file."""
        if is_remote(self.pictures.path(sample, image)):
            # Only an estimate for the order of the rows: fetching every image for its size would cost a pass.
            return self.processor.image.crop_size, self.processor.image.crop_size
        return self.pictures.size(sample, image)

    def _why_nothing_is_learnt(self, cut: int, length: int) -> str:
        if cut:
            return (
                f"nothing to learn in the first {self.max_length} of {length} positions; "
                'raise max_length, or set on_bad_sample to "skip"'
            )
        return "no token to learn; every assistant text is empty or has weight 0"


def _named(error: DataError, sample: Sample) -> DataError:
    return error if str(error).startswith(sample.where) else DataError(f"{sample.where}: {error}")


def _fit(ids: np.ndarray, layouts: Sequence[ImageLayout], max_length: int) -> tuple[int, int, int]:
    """(ids to keep, their merged length, merged positions cut off)."""
    spans = np.ones(len(ids), dtype=np.int64)
    spans[ids == IMAGE_TOKEN_INDEX] = [layout.length for layout in layouts]
    ends = np.cumsum(spans)
    total = int(ends[-1]) if len(ends) else 0
    kept = int((ends <= max_length).sum())
    length = int(ends[kept - 1]) if kept else 0
    return kept, length, total - length
