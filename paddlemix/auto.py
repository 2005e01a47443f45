# SPDX-License-Identifier: Apache-2.0
"""The public names: configuration, model, processor and tokenizer of a model folder, from its files alone.

A name such as ``liuhaotian/llava-v1.5-7b`` is a folder below the working directory or below ``PPMIX_HOME``/models, and
otherwise a download; configuration, processor and tokenizer take only the small files.
Importing this module imports neither paddle nor numpy.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL.Image import Image

    from paddlemix.imaging.processor import ImageProcessor, Processed
    from paddlemix.models.llava import LlavaForCausalLM
    from paddlemix.settings.model import LlavaConfig
    from paddlemix.text.messages import Layout, Message
    from paddlemix.text.render import Rendered
    from paddlemix.text.tokenizer import Tokenizer


class AutoConfigMIX:
    """``LlavaConfig`` of any published layout."""

    @classmethod
    def from_pretrained(cls, name: str | Path, *, vision_tower: str | Path | None = None, **overrides: Any) -> Any:
        """The configuration of a folder. ``overrides``: LLaVA's keys (image_aspect_ratio, ...) and ``dtype``."""
        return _config(_folder(name), vision_tower, overrides)

    @staticmethod
    def save_pretrained(config: "LlavaConfig", folder: str | Path) -> None:
        """Write our ``config.json`` and ``preprocessor_config.json``."""
        from paddlemix.checkpoint.save_files import write_config

        Path(folder).mkdir(parents=True, exist_ok=True)
        write_config(Path(folder), config)


class AutoModelMIX:
    """``LlavaForCausalLM`` with its weights."""

    @classmethod
    def from_pretrained(
        cls, name: str | Path, config: "LlavaConfig | None" = None, dtype: Any = "float32", **options: Any
    ) -> "LlavaForCausalLM":
        """The model of a folder, in eval mode. ``options`` are those of ``checkpoint.load.load_model``.

        ``dtype``: float32, float16 or bfloat16 (also ``fp16``, ``bf16``, paddle's own); ConfigError for any other.
        ``config`` replaces what the folder says, for example with another ``select_layer``; the weights must fit it.
        """
        from paddlemix.checkpoint.load import load_model

        return load_model(name, config=config, dtype=dtype, **options).model

    @staticmethod
    def save_pretrained(
        model: "LlavaForCausalLM", folder: str | Path, tokenizer: "Tokenizer | None" = None, **options: Any
    ) -> None:
        """Publish a model folder; with a ``tokenizer`` it is complete. ``options`` are those of ``save_model``."""
        from paddlemix.checkpoint.save import save_model

        save_model(folder, model, model.config, tokenizer, **options)


class AutoTokenizerMIX:
    """The tokenizer of a folder; of an adapter without one, its base's."""

    @classmethod
    def from_pretrained(cls, name: str | Path, **options: Any) -> "Tokenizer":
        """``options`` are those of ``text.tokenizer.load_tokenizer``."""
        from paddlemix.text.tokenizer import load_tokenizer

        return load_tokenizer(_tokenizer_folder(_folder(name)), **options)

    @staticmethod
    def save_pretrained(tokenizer: "Tokenizer", folder: str | Path) -> None:
        """Write the tokenizer's files."""
        tokenizer.save(folder)


class LlavaProcessor:
    """Pictures to pixels, messages to ids: what one model needs of its inputs."""

    def __init__(
        self, images: "ImageProcessor | None", tokenizer: "Tokenizer", template: "Layout", max_length: int
    ) -> None:
        self.images = images
        self.tokenizer = tokenizer
        self.template = template
        self.max_length = max_length

    def __call__(self, picture: "Image | str | Path") -> "Processed":
        """Pixels and layout of a picture, a path or an address. ConfigError for a model without a vision tower."""
        from paddlemix.imaging.load import load_image
        from paddlemix.utils.errors import ConfigError

        if self.images is None:
            raise ConfigError("this model has no vision tower, so it takes no pictures")
        return self.images(load_image(picture))

    def prompt(self, messages: "Sequence[Message]", *, answer_open: bool = True) -> "Rendered":
        """Ids of a conversation, ready for the next answer. DataError when they are more than ``max_length``."""
        from paddlemix.text.render import render
        from paddlemix.utils.errors import DataError

        rendered = render(self.template, messages, self.tokenizer, answer_open=answer_open)
        if len(rendered.ids) > self.max_length:
            raise DataError(f"the conversation has {len(rendered.ids)} tokens, the limit is {self.max_length}")
        return rendered

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the tokenizer's files and ``preprocessor_config.json``."""
        from paddlemix.checkpoint.save_files import processor_data, write_json

        Path(folder).mkdir(parents=True, exist_ok=True)
        self.tokenizer.save(folder)
        if self.images is not None:
            write_json(Path(folder) / "preprocessor_config.json", processor_data(self.images.image))


class AutoProcessorMIX:
    """Processor and tokenizer of a folder."""

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        text_model_name_or_path: str | Path | None = None,
        train: str | None = None,
        eval: str | None = None,
        max_length: int | None = None,
        image_aspect_ratio: str | None = None,
        version: str | None = None,
        vision_tower: str | Path | None = None,
    ) -> "tuple[LlavaProcessor, Tokenizer]":
        """``(processor, tokenizer)``; what is None comes from the model's own configuration.

        ``text_model_name_or_path``: the tokenizer from elsewhere. ``version``: conversation template. ``train`` and
        ``eval`` name a sub-folder of ``processor/``, as PaddleMIX's callers do; LLaVA folders have none, and one that
        has is an error.
        """
        from paddlemix.imaging.processor import ImageProcessor
        from paddlemix.text import templates
        from paddlemix.text.model_template import template_for
        from paddlemix.text.tokenizer import load_tokenizer

        folder = _folder(name)
        for part in (train, eval):
            _refuse_sub_folder(folder, part)
        config = _config(folder, vision_tower, {"image_aspect_ratio": image_aspect_ratio})
        template = templates.get(version) if version else template_for(folder, config.template)
        where = folder if text_model_name_or_path is None else _folder(text_model_name_or_path)
        tokenizer = load_tokenizer(_tokenizer_folder(where))
        sees = config.image is not None and config.vision is not None
        images = ImageProcessor(config.image, config.vision) if sees else None
        return LlavaProcessor(images, tokenizer, template, max_length or config.model_max_length), tokenizer


def _folder(name: str | Path) -> Path:
    from paddlemix.checkpoint.folders import resolve

    return resolve(name, "the model", weights=False)


def _config(folder: Path, vision_tower: str | Path | None, overrides: dict[str, Any]) -> Any:
    from paddlemix.checkpoint.folders import CONFIG, find, read_json, resolve, tower_name
    from paddlemix.settings.legacy import load_config

    if vision_tower is not None:
        tower = resolve(vision_tower, "the vision tower", near=folder)
    else:
        named = tower_name(read_json(folder / CONFIG))
        tower = find(named, near=folder) if named else None
    given = {key: value for key, value in overrides.items() if value is not None}
    return load_config(folder, tower_folder=tower, overrides=given or None)


def _tokenizer_folder(folder: Path) -> Path:
    from paddlemix.checkpoint.folders import kind_of
    from paddlemix.checkpoint.lora_read import read_adapter
    from paddlemix.text.tokenizer_files import has_tokenizer

    if has_tokenizer(folder) or kind_of(folder) not in ("adapter", "peft"):
        return folder
    return read_adapter(folder).find_base(None)


def _refuse_sub_folder(folder: Path, part: str | None) -> None:
    from paddlemix.utils.errors import ConfigError

    if part is not None and (folder / "processor" / part).is_dir():
        raise ConfigError(f"{folder / 'processor' / part}: processors of their own per stage are not read; remove it")
