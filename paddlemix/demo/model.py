# SPDX-License-Identifier: Apache-2.0
"""The model of the demo before its first step: a vocabulary made from the demo's own sentences, and random weights."""

import io
import itertools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from paddlemix.settings.model import ImageConfig, LlavaConfig, TextConfig, VisionConfig
from paddlemix.text.messages import Message
from paddlemix.text.templates import get, prompt_text
from paddlemix.text.tokenizer import load_tokenizer
from paddlemix.utils.files import publish_folder

if TYPE_CHECKING:
    from paddlemix.models.llava import LlavaForCausalLM

TEMPLATE = "vicuna_v1"
TILE = 32
MEAN, STD = (0.14, 0.14, 0.19), (0.27, 0.26, 0.28)
"""The demo's images are dark: their own mean, and CLIP's deviation. With CLIP's mean, that of photographs, the ground
around the shapes is most of what the tower gets, and chance decides how many steps a run needs (docs/demo.md)."""
VOCABULARY = 640
"""Upper limit. 256 of the pieces are single bytes, so that anything a person types can be read."""

_SYSTEM = "\u2581" + get(TEMPLATE).system.replace(" ", "\u2581")
"""The system text is the same in every row: as one piece it takes one position of about thirty and not 23 of fifty."""

_OFTEN = 20
"""Sentences are many and words few; each different sentence counts this often at most."""


def write_tokenizer(folder: Path, sentences: Iterable[str], *, short: bool = True) -> None:
    """Train a sentencepiece vocabulary (ids 0, 1, 2: unk, bos, eos) and write it as a Llama tokenizer folder.

    ``short`` makes the system text one piece, which saves time. The multi-view demo learns less reliably that way.
    """
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_corpus(sentences, short)),
        model_writer=model,
        vocab_size=VOCABULARY,
        hard_vocab_limit=False,
        model_type="bpe",
        byte_fallback=True,
        split_digits=True,
        split_by_unicode_script=False,  # "ASSISTANT:" is one piece, which makes rounds short
        user_defined_symbols=["?", _SYSTEM, "USER:"] if short else ["?"],
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        minloglevel=2,
        num_threads=1,
    )
    roles = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    config = {**roles, "add_bos_token": True, "legacy": False, "model_max_length": 1024, "padding_side": "right"}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    (folder / "special_tokens_map.json").write_text(json.dumps(roles), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


def _corpus(sentences: Iterable[str], short: bool) -> list[str]:
    """The different sentences, as they begin and behind an image's line break, and the template's own words."""
    frame = prompt_text(get(TEMPLATE), [Message("user", "\n")], answer_open=True)
    distinct = sorted(set(sentences))
    behind = [f"\n{sentence}" for sentence in distinct] if short else []
    words = sorted({word for sentence in distinct for word in sentence.split()})
    return [*itertools.chain.from_iterable([frame, *distinct, *behind, *words] for _ in range(_OFTEN))]


def tiny_config(vocabulary: int) -> LlavaConfig:
    """A LLaVA of 0.87 million parameters with every part of a large one: tower, projector, decoder."""
    text = TextConfig(
        vocab_size=vocabulary,
        hidden_size=128,
        intermediate_size=320,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=1024,
    )
    vision = VisionConfig(
        hidden_size=96,
        intermediate_size=384,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=TILE,
        patch_size=16,
        select_layer=-1,
    )
    image = ImageConfig(crop_size=TILE, resize_size=TILE, mean=MEAN, std=STD)
    return LlavaConfig(text=text, vision=vision, image=image, template=TEMPLATE, model_max_length=1024)


def draw_start(model: "LlavaForCausalLM", seed: int) -> None:
    """Draw every weight as a network of this size wants it.

    The usual starting widths (0.02) suit models a hundred times wider. Here every matrix starts at
    ``1 / sqrt(fan-in)``: on smaller shapes in nine places, kinds were 45 % right after 1,200 steps instead of 25 %
    (one run each; chance is 20 %). The tower's position rows start at 1, as large as the patches they are added to.
    """
    import numpy as np
    import paddle

    from paddlemix.models.llava import allocate, init_weights

    init_weights(model, seed)
    for name, parameter in model.named_parameters():
        shape = list(parameter.shape)
        if len(shape) < 2:
            continue
        fan_in = int(np.prod(shape[1:])) if len(shape) == 4 else shape[0]
        width = 1.0 if "positional_embedding" in name else fan_in**-0.5
        values = parameter.numpy()
        allocate(parameter, paddle.to_tensor(values * np.float32(width / values.std())))


def write_start(folder: Path, sentences: Iterable[str], seed: int) -> int:
    """The model folder that training starts from; returns the number of parameters."""
    from paddlemix.checkpoint.save import save_model
    from paddlemix.models.llava import build_empty

    with publish_folder(folder.with_name(f"{folder.name}-tokenizer"), replace=True) as staging:
        write_tokenizer(staging, sentences)
        tokenizer = load_tokenizer(staging)
    config = tiny_config(tokenizer.vocab_size)
    model = build_empty(config)
    draw_start(model, seed)
    save_model(folder, model, config, tokenizer, replace=True)
    return sum(int(parameter.size) for parameter in model.parameters())
