# SPDX-License-Identifier: Apache-2.0
"""The way to vLLM and vllm-ascend: what ``convert --to llava-hf`` writes has all that their LLaVA classes read.

The lists are what vLLM's ``llava.py``, ``llava_next.py`` and the loaders below them ask of a folder (read 2026-11). No
vLLM runs here.
"""

import json
import struct
from pathlib import Path

import pytest

from paddlemix.checkpoint.convert.layouts import convert
from paddlemix.checkpoint.save import save_model
from paddlemix.settings.model import ImageConfig
from paddlemix.text.tokenizer import load_tokenizer
from tests.text.text_tools import folder as tokenizer_folder
from tests.tiny import tiny_model

CONFIG = ("architectures", "model_type", "text_config", "vision_config", "vision_feature_layer", "image_token_index",
          "vision_feature_select_strategy", "projector_hidden_act", "torch_dtype", "tie_word_embeddings")  # fmt: skip
TEXT = ("architectures", "model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
        "num_attention_heads", "num_key_value_heads", "hidden_act", "max_position_embeddings", "rms_norm_eps",
        "rope_theta", "bos_token_id", "eos_token_id")  # fmt: skip
VISION = ("model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size",
          "patch_size", "hidden_act", "layer_norm_eps")  # fmt: skip
PROCESSOR = (
    "processor_class",
    "patch_size",
    "vision_feature_select_strategy",
    "num_additional_image_tokens",
    "image_token",
)
IMAGES = ("image_processor_type", "size", "crop_size", "do_resize", "do_center_crop", "do_normalize", "image_mean",
          "image_std", "rescale_factor", "do_convert_rgb")  # fmt: skip
CASES = {
    "pad": ("LlavaForConditionalGeneration", "llava", "LlavaProcessor"),
    "anyres": ("LlavaNextForConditionalGeneration", "llava_next", "LlavaNextProcessor"),
}


@pytest.mark.parametrize("name", CASES)
def test_the_folder_holds_what_vllm_reads(name: str, tmp_path: Path) -> None:
    pairs = ((28, 56), (56, 28), (56, 56)) if name == "anyres" else ()
    image = ImageConfig(28, 28, name, "spatial_unpad" if pairs else "flat", pairs)
    model = tiny_model(image=image, has_image_newline=bool(pairs))
    own = save_model(tmp_path / "own", model, model.config, load_tokenizer(tokenizer_folder(legacy=False)))
    folder = convert(own, tmp_path / "hf", "llava-hf").folder

    def read(file: str) -> dict:
        return json.loads((folder / file).read_text(encoding="utf-8"))

    config, processor, images = read("config.json"), read("processor_config.json"), read("preprocessor_config.json")
    architecture, kind, made = CASES[name]
    assert (config["architectures"], config["model_type"]) == ([architecture], kind)
    assert set(CONFIG) <= set(config)
    assert set(TEXT) <= set(config["text_config"])
    assert set(VISION) <= set(config["vision_config"])
    assert set(PROCESSOR) <= set(processor)
    assert set(IMAGES) <= set(images)
    assert processor["processor_class"] == images["processor_class"] == made
    if kind == "llava_next":
        assert config["image_grid_pinpoints"] == images["image_grid_pinpoints"]
    # vLLM counts the places of an image by these, and looks the image's id up in the tokenizer.
    assert processor["patch_size"] == config["vision_config"]["patch_size"]
    assert processor["vision_feature_select_strategy"] == config["vision_feature_select_strategy"]
    added = {row["content"]: row["id"] for row in read("tokenizer.json")["added_tokens"]}
    assert added[processor["image_token"]] == config["image_token_index"] < config["text_config"]["vocab_size"]
    assert config["text_config"]["vocab_size"] % 64 == 0
    assert read("tokenizer_config.json")["chat_template"]
    assert read("generation_config.json")["eos_token_id"] is not None
    with open(folder / "model.safetensors", "rb") as stream:
        tensors = json.loads(stream.read(struct.unpack("<Q", stream.read(8))[0]))
    begins = {".".join(tensor.split(".")[:2]) for tensor in tensors if tensor != "__metadata__"}
    known = {"language_model.model", "language_model.lm_head", "vision_tower.vision_model",
             "multi_modal_projector.linear_1", "multi_modal_projector.linear_2", "image_newline"}  # fmt: skip
    assert begins <= known
    assert known - begins <= {"image_newline"}
