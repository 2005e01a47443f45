# SPDX-License-Identifier: Apache-2.0
"""A tiny model, tokenizer, processor and image for tests: random weights, built in well under a second."""

import functools
import io
import json
import tempfile
from pathlib import Path
from typing import Any

TEXT = (
    "a red green blue square circle triangle stands left right above below of the and what is shown in this picture "
    "how many things are there one two three four why because colour shape it USER ASSISTANT A chat between curious "
    "human an artificial intelligence assistant gives helpful detailed polite answers to human's questions"
)


@functools.cache
def tokenizer_model(vocab_size: int = 420) -> bytes:
    """A sentencepiece BPE model with byte fallback, trained once per process on a made-up text."""
    import sentencepiece

    words = TEXT.split()
    lines = [" ".join(words[(i * k) % len(words)] for i in range(1, 12)) + "?" for k in range(1, 60)]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        vocab_size=vocab_size,
        model_type="bpe",
        byte_fallback=True,
        split_digits=True,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        hard_vocab_limit=False,
        minloglevel=2,
        num_threads=1,
    )
    return model.getvalue()


def tiny_tokenizer_folder(folder: str | Path | None = None, *, legacy: bool = False) -> Path:
    """A folder with the tokenizer files of a Llama checkpoint; a new temporary one when ``folder`` is None."""
    folder = Path(tempfile.mkdtemp(prefix="tiny-tokenizer-") if folder is None else folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(tokenizer_model())
    specials = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "special_tokens_map.json").write_text(json.dumps(specials), encoding="utf-8")
    config = {
        **specials,
        "add_bos_token": True,
        "add_eos_token": False,
        "legacy": legacy,
        "model_max_length": 2048,
        "padding_side": "right",
        "tokenizer_class": "LlamaTokenizer",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def tiny_config(**changes: Any) -> Any:
    """A LLaVA of two layers: vocabulary 448, width 32, tiles of 28 pixels with 4 patches."""
    from paddlemix.settings.model import ImageConfig, LlavaConfig, TextConfig, VisionConfig

    text = TextConfig(
        vocab_size=448,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=changes.pop("max_position_embeddings", 512),
    )
    vision = VisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=28, patch_size=14
    )
    image = ImageConfig(crop_size=28, resize_size=28, aspect="pad")
    return LlavaConfig(text=text, vision=vision, image=image, model_max_length=512).with_changes(**changes)


def tiny_intern_config(**changes: Any) -> Any:
    """Like ``tiny_config``, with an InternViT of 28 pixels (a 2 x 2 position table) that is used at 42."""
    from dataclasses import replace

    from paddlemix.settings.towers.base import IMAGENET_MEAN, IMAGENET_STD

    config = tiny_config()
    vision = replace(
        config.vision,
        model_type="intern_vit_6b",
        image_size=42,
        num_hidden_layers=4,
        select_layer=-2,
        hidden_act="gelu",
        layer_norm_eps=1e-6,
        extra={"qkv_bias": False, "qk_normalization": True, "position_grid": 2},
    )
    image = replace(config.image, crop_size=42, resize_size=42, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    return config.with_changes(vision=vision, image=image).with_changes(**changes)


def tiny_model(seed: int = 0, **changes: Any) -> Any:
    """A model of ``config`` (default: ``tiny_config(**changes)``) with seeded random weights, in eval mode.

    ``runtime`` is its own unless it is given.

    The weights are larger than a training would begin with: with the usual 0.02 the scores of such a narrow model
    hardly depend on the prompt, and no test could tell a right answer from a wrong one.
    """
    import paddle

    from paddlemix.models.llava import LlavaForCausalLM, init_weights

    runtime = changes.pop("runtime", None)
    model = LlavaForCausalLM(changes.pop("config", None) or tiny_config(**changes), runtime=runtime)
    init_weights(model, seed)
    with paddle.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.set_value(parameter * 8.0)
    model.eval()
    return model


def write_rows(folder: Path) -> None:
    """Six images; ``train.json`` with rows about them, the last without one; ``eval.json`` with three of the rows."""
    rows = []
    for index in range(6):
        tiny_image(index).save(folder / f"{index}.png")
        turns = [("human", f"<image>\nwhat colour {index}?"), ("gpt", "red square" if index % 2 else "blue circle")]
        rows.append({"image": f"{index}.png", "conversations": [{"from": who, "value": text} for who, text in turns]})
    del rows[-1]["image"]
    rows[-1]["conversations"][0]["value"] = "how many?"
    (folder / "train.json").write_text(json.dumps(rows))
    (folder / "eval.json").write_text(json.dumps(rows[:3]))


def tiny_image(kind: int = 0, size: tuple[int, int] = (40, 30)) -> Any:
    """An RGB image of (width, height) pixels; every ``kind`` is another one."""
    import numpy as np
    from PIL import Image

    pixels = np.random.default_rng(kind).integers(0, 255, (size[1] // 10, size[0] // 10, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST)
