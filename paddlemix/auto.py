# SPDX-License-Identifier: Apache-2.0
"""The public names: configuration, model, processor, tokenizer and chat of a model folder, from its files alone.

    chat = AutoChatMIX.from_pretrained("FOLDER")
    print(chat.answer("What is this?", "a.png"), chat.answer("And behind it?"))
    for piece in chat.ask("Tell me more."): print(piece, end="")
    answers = chat.batch(["What is this?", "How many?"], ["a.png", ["b.png", "c.png"]], max_new_tokens=16)

A name such as ``liuhaotian/llava-v1.5-7b`` is a folder below the working directory or below ``PPMIX_HOME``/models, and
otherwise a download; configuration, processor and tokenizer take only the small files.
Importing this module imports neither paddle nor numpy.
"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from paddlemix.generation.session import ChatSession
    from paddlemix.imaging.processor import ImageProcessor, Processed
    from paddlemix.models.llava import LlavaForCausalLM
    from paddlemix.settings.model import LlavaConfig
    from paddlemix.text.messages import ChatFormat, Message
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

    @staticmethod
    def generate(
        model: "LlavaForCausalLM",
        input_ids: "np.ndarray",
        attention_mask: "np.ndarray | None" = None,
        pixel_values: "np.ndarray | None" = None,
        layouts: "Sequence[Sequence[Any]]" = (),
        tokenizer: "Tokenizer | None" = None,
        **decoding: Any,
    ) -> list[list[int]]:
        """Ids of the answer of each row, its ending id included: what ``LlavaProcessor`` gives, continued.

        ``input_ids`` int64 [B, T] with IMAGE_TOKEN_INDEX at image places; where ``attention_mask`` is 0 nothing stands.
        ``pixel_values`` float32 [N, 3, S, S] are all tiles in order, ``layouts`` those of each row's images.
        ``tokenizer`` keeps the ids to those that it knows, where the model's table is padded beyond them.
        ``decoding`` are fields of ``generation.sampling.Decoding``; without ``eos_ids`` the model's own id ends a row.
        DataError when the images of a row do not fit its places.
        """
        import numpy as np

        from paddlemix.generation.engine import generate_batch
        from paddlemix.generation.sampling import Decoding
        from paddlemix.splice.plan import PlanRow, build_plan

        ids = np.asarray(input_ids)
        mask = np.ones_like(ids) if attention_mask is None else np.asarray(attention_mask)
        pictures = [list(found) for found in layouts] or [[] for _ in ids]
        rows = [PlanRow(row[kept > 0], own) for row, kept, own in zip(ids, mask, pictures, strict=True)]
        plan = build_plan(rows, tokens_per_tile=model.config.tokens_per_tile, padding_side="left")
        known = None if tokenizer is None else tokenizer.vocab_size
        given = {"eos_ids": (model.config.text.eos_token_id,), "vocab_size": known, **decoding}
        return generate_batch(model, plan, pixel_values, Decoding(**given))


class AutoChatMIX:
    """A conversation with a model: ``answer``, ``ask`` (streams), ``batch``, ``reset``."""

    @classmethod
    def from_pretrained(cls, name: str | Path, *, device: str | None = None, **options: Any) -> "ChatSession":
        """The session of a folder, a LoRA adapter or a name. ``options`` are those of ``generation.load.load_chat``,
        with ``generation.predictor.Opening``.

        ``device``: ``cpu``, ``gpu[:N]``, ``npu[:N]``; None is the best there is, in the dtype that it computes in.
        """
        from paddlemix.utils import device as devices

        devices.before_paddle(device)
        from paddlemix.generation.load import load_chat

        return load_chat(str(name), device=device, **options)


class AutoTokenizerMIX:
    """The tokenizer of a folder; of an adapter without one, its base's."""

    @classmethod
    def from_pretrained(cls, name: str | Path, base: str | Path | None = None, **options: Any) -> "Tokenizer":
        """``base``: the base model of an adapter without a tokenizer, if the adapter does not lead to it.

        ``options`` are those of ``text.tokenizer.load_tokenizer``.
        """
        from paddlemix.text.tokenizer import load_tokenizer

        return load_tokenizer(_tokenizer_folder(_folder(name), base), **options)

    @staticmethod
    def save_pretrained(tokenizer: "Tokenizer", folder: str | Path) -> None:
        """Write the tokenizer's files."""
        tokenizer.save(folder)


class LlavaProcessor:
    """Images to pixels, messages to ids: what one model needs of its inputs."""

    def __init__(
        self,
        images: "ImageProcessor | None",
        tokenizer: "Tokenizer",
        template: "ChatFormat",
        max_length: int,
        use_im_start_end: bool = False,
    ) -> None:
        self.images = images
        self.tokenizer = tokenizer
        self.template = template
        self.max_length = max_length
        self.use_im_start_end = use_im_start_end

    def __call__(self, images: Any = None, text: Any = None) -> Any:
        """Inputs of a model.

        One image alone (PIL, bytes, a path or an address): its ``Processed`` pixels and layout.
        With ``text``: a dict with ``input_ids`` and ``attention_mask`` int64 [B, T] (padded on the left),
        ``pixel_values`` float32 [N, 3, S, S] (None without images) and ``layouts``, which ``AutoModelMIX.generate``
        takes. A ``text`` is a question, which gets the model's template around it, or a conversation: ``Message``s, or
        dicts as in a row of training data (``role`` and ``content``, which may be parts; ``from`` and ``value``). Its
        ``images`` are one image or several. Several texts are a list of questions or a list of conversations, and
        ``images`` has an entry for each: None, an image or several.
        ConfigError for images without a vision tower; DataError where images and ``<image>`` marks differ.
        """
        from paddlemix.text.batching import as_list, pad_rows

        if text is None:
            return self._picture(images)
        several = not isinstance(text, str) and bool(text) and not _is_message(text[0])
        texts = list(text) if several else [text]
        given = [as_list(own) for own in _entries(images, len(texts))] if several else [as_list(images)]
        processed = [[self._picture(picture, len(own)) for picture in own] for own in given]
        rows = [self._ids(one, len(own)) for one, own in zip(texts, processed, strict=True)]
        return {
            **pad_rows(rows, self.tokenizer.pad_id),
            "pixel_values": _tiles([picture for own in processed for picture in own]),
            "layouts": [[picture.layout for picture in own] for own in processed],
        }

    def _picture(self, picture: Any, count: int = 1) -> "Processed":
        from paddlemix.imaging.load import OWN_LIMITS, load_image
        from paddlemix.utils.errors import ConfigError

        if self.images is None:
            raise ConfigError("this model has no vision tower, so it takes no images")
        return self.images.among(count)(load_image(picture, OWN_LIMITS))

    def _ids(self, text: Any, pictures: int) -> list[int]:
        from paddlemix.datasets.rows import read_messages
        from paddlemix.text.messages import Message, placed_messages, question
        from paddlemix.utils.constants import IMAGE_TOKEN, IMAGE_TOKEN_INDEX
        from paddlemix.utils.errors import DataError

        tags = self.use_im_start_end
        if isinstance(text, str):
            messages = question(text, pictures, mmtag=self.template.mmtag, use_im_start_end=tags)
        elif all(isinstance(one, Message) for one in text):
            messages = list(text)
        else:
            read = read_messages(text, [None] * pictures)
            messages = placed_messages(read.messages, layout=self.template, images=pictures, use_im_start_end=tags)
        ids = [int(token) for token in self.prompt(messages).ids]
        places = ids.count(IMAGE_TOKEN_INDEX)
        if places != pictures:
            raise DataError(f'a text has {places} "{IMAGE_TOKEN}" and {pictures} images; each mark needs one image')
        return ids

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
        from paddlemix.text.vocabulary import fit_rows
        from paddlemix.utils.options import PYTHON, speaking

        folder = _folder(name)
        for part in (train, eval):
            _refuse_sub_folder(folder, part)
        with speaking(replace(PYTHON, base="text_model_name_or_path=FOLDER", template="version=NAME")):
            config = _config(folder, vision_tower, {"image_aspect_ratio": image_aspect_ratio})
            template = templates.get(version) if version else template_for(folder, config.template)
            where = folder if text_model_name_or_path is None else _folder(text_model_name_or_path)
            tokenizer = load_tokenizer(_tokenizer_folder(where))
        fit_rows(tokenizer, config.text.vocab_size)
        sees = config.image is not None and config.vision is not None
        images = ImageProcessor(config.image, config.vision) if sees else None
        length = max_length or config.model_max_length
        return LlavaProcessor(images, tokenizer, template, length, config.use_im_start_end), tokenizer


def _is_message(part: Any) -> bool:
    from paddlemix.text.messages import Message

    return isinstance(part, Message | dict)


def _entries(images: Any, texts: int) -> "Sequence[Any]":
    """The images of each of so many texts."""
    from paddlemix.utils.errors import DataError

    if images is None:
        return [None] * texts
    if not isinstance(images, list | tuple) or len(images) != texts:
        count = len(images) if isinstance(images, list | tuple) else "one image"
        raise DataError(f"{texts} texts and {count} as images: give a list with an entry for each text, None for none")
    return images


def _tiles(pictures: "Sequence[Processed]") -> "np.ndarray | None":
    """All tiles in order, float32 [N, 3, S, S]."""
    import numpy as np

    return np.concatenate([picture.pixels for picture in pictures]) if pictures else None


def _folder(name: str | Path) -> Path:
    from paddlemix.checkpoint.folders import resolve

    return resolve(name, "the model", weights=False)


def _config(folder: Path, vision_tower: str | Path | None, overrides: dict[str, Any]) -> Any:
    from paddlemix.checkpoint.folders import CONFIG, find, read_json, resolve, tower_name
    from paddlemix.settings.published.config import load_config

    if vision_tower is not None:
        tower = resolve(vision_tower, "the vision tower", near=folder)
    else:
        named = tower_name(read_json(folder / CONFIG))
        tower = find(named, near=folder) if named else None
    given = {key: value for key, value in overrides.items() if value is not None}
    return load_config(folder, tower_folder=tower, overrides=given or None)


def _tokenizer_folder(folder: Path, base: str | Path | None = None) -> Path:
    from paddlemix.checkpoint.folders import is_adapter
    from paddlemix.checkpoint.lora.read import read_adapter
    from paddlemix.text.tokenizer_files import has_tokenizer

    if has_tokenizer(folder) or not is_adapter(folder):
        return folder
    return read_adapter(folder).find_base(base)


def _refuse_sub_folder(folder: Path, part: str | None) -> None:
    from paddlemix.utils.errors import ConfigError

    if part is not None and (folder / "processor" / part).is_dir():
        raise ConfigError(f"{folder / 'processor' / part}: processors of their own per stage are not read; remove it")
