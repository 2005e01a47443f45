# SPDX-License-Identifier: Apache-2.0
"""Tiny random LLaVAs on SigLIP and Qwen2 in llava-hf's layout, and what transformers computes with them.

    python tests/peers/onevision.py tests/data/onevision

Needs torch and transformers (5.24 made the files here), and ``tests/data/byte_bpe`` beside the target. Writes the
folders ``interleave`` (class Llava, two pictures in a text) and ``onevision`` (LlavaOnevision), and ``expected.npz``.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from transformers import (
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipVisionConfig,
)

TEXT = {
    "vocab_size": 480, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "rope_parameters": {"rope_type": "default",
    "rope_theta": 1000000.0}, "tie_word_embeddings": True, "pad_token_id": None, "bos_token_id": 464,
    "eos_token_id": 466,
}  # fmt: skip
# A side of 30 pixels has 4 patches of 7, and 2 pixels that belong to none, as 384 has with patches of 14.
VISION = {
    "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 30,
    "patch_size": 7, "vision_use_head": False,
}  # fmt: skip
GRID = [[30, 60], [60, 30], [60, 60], [90, 60], [60, 90], [90, 90]]
SIZES = {"interleave": [(30, 30), (30, 30)], "onevision": [(50, 80)], "several": [(50, 80), (90, 40)]}
TILES = {"interleave": [1, 1], "onevision": [7], "several": [1, 1]}
BEFORE = ([3, 4, 5], [6, 7], [8, 9, 10, 11])
"""Ids in front of each picture, and behind the last one."""
NEW = 12
WATCHED = (
    "model.vision_tower.embeddings.position_embedding.weight",
    "model.vision_tower.encoder.layers.0.mlp.fc1.weight",
    "model.multi_modal_projector.linear_1.weight",
    "model.language_model.layers.1.self_attn.k_proj.bias",
    "model.image_newline",
)


def build(kind: str, image_id: int) -> torch.nn.Module:
    """The model of a kind, every parameter drawn anew."""
    parts = {"text_config": Qwen2Config(**TEXT), "vision_config": SiglipVisionConfig(**VISION)}
    shared = {"image_token_index": image_id, "vision_feature_layer": -1, "vision_feature_select_strategy": "full",
              "tie_word_embeddings": True}  # fmt: skip
    if kind == "interleave":
        made = LlavaForConditionalGeneration(LlavaConfig(**parts, **shared))
    else:
        more = {"image_grid_pinpoints": GRID, "vision_aspect_ratio": "anyres_max_1", "video_token_index": image_id + 1}
        made = LlavaOnevisionForConditionalGeneration(LlavaOnevisionConfig(**parts, **shared, **more))
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.1 * drawn if "norm" in name and "weight" in name else 0.25 * drawn)
    return made.float().eval()


def answer(model: torch.nn.Module, case: str, image_id: int) -> dict[str, np.ndarray]:
    """Pixels, hidden states of the tower, logits behind every place, greedy ids, loss and gradients."""
    rng = np.random.default_rng(13)
    tiles = TILES[case]
    pixels = torch.tensor(rng.standard_normal((sum(tiles), 3, 30, 30)).astype(np.float32))
    given = {"pixel_values": pixels}
    if case != "interleave":
        most = max(tiles)
        padded = [torch.nn.functional.pad(part, (0, 0) * 3 + (0, most - len(part))) for part in pixels.split(tiles)]
        sizes = torch.tensor(SIZES[case])
        given = {
            "pixel_values": torch.stack(padded),
            "image_sizes": sizes,
            "batch_num_images": torch.tensor([len(tiles)]),
        }
    with torch.no_grad():
        found = model.get_image_features(**given)
        counts = [len(part) for part in found.pooler_output]
        states = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states
    ids = []
    for number, count in enumerate(counts):
        ids += [*BEFORE[number], *[image_id] * count]
    ids = torch.tensor([[*ids, *BEFORE[-1]]])
    labels = torch.where(ids == image_id, -100, ids)
    out = model(input_ids=ids, labels=labels, **given)
    out.loss.backward()
    grads = {name: value.grad for name, value in model.named_parameters() if name in WATCHED and value.grad is not None}
    with torch.no_grad():
        drawn = model.generate(
            input_ids=ids, max_new_tokens=NEW, do_sample=False, eos_token_id=None, pad_token_id=0, **given
        )
    parts = {"pixels": pixels, "states": torch.stack(states), "logits": out.logits[0], "loss": out.loss,
             "greedy": drawn[0, ids.shape[1] :], "counts": torch.tensor(counts), **grads}  # fmt: skip
    model.zero_grad(set_to_none=True)
    return {name: value.detach().numpy() for name, value in parts.items()}


def watch(model: torch.nn.Module, video_id: int) -> dict[str, np.ndarray]:
    """The same of a video of three frames: features, logits and greedy ids."""
    pixels = torch.tensor(np.random.default_rng(17).standard_normal((1, 3, 3, 30, 30)).astype(np.float32))
    with torch.no_grad():
        features = model.get_video_features(pixel_values_videos=pixels).pooler_output[0]
        ids = torch.tensor([[*BEFORE[0], *[video_id] * len(features), *BEFORE[-1]]])
        out = model(input_ids=ids, pixel_values_videos=pixels)
        given = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        drawn = model.generate(input_ids=ids, pixel_values_videos=pixels, **given)
    found = {"pixels": pixels[0], "features": features, "logits": out.logits[0], "greedy": drawn[0, ids.shape[1] :]}
    return {name: value.numpy() for name, value in found.items()}


def main(target: Path) -> None:
    """Write the folders and the numbers."""
    numbers = {}
    for kind in ("interleave", "onevision"):
        tokenizer = PreTrainedTokenizerFast.from_pretrained(target.parent / "byte_bpe" / "qwen2")
        tokenizer.add_special_tokens({"additional_special_tokens": ["<image>", "<video>"]})
        image_id = tokenizer.convert_tokens_to_ids("<image>")
        model = build(kind, image_id)
        model.save_pretrained(target / kind)
        tokenizer.save_pretrained(target / kind)
        (target / kind / "generation_config.json").unlink(missing_ok=True)
        for case in (kind,) if kind == "interleave" else ("onevision", "several"):
            found = answer(model, case, image_id)
            numbers |= {f"{case}/{key}": value for key, value in found.items()}
        if kind == "onevision":
            numbers |= {f"video/{key}": value for key, value in watch(model, image_id + 1).items()}
    np.savez_compressed(target / "expected.npz", **numbers)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
