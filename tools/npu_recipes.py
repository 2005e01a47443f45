# SPDX-License-Identifier: Apache-2.0
"""The table of NPU recipes in docs/cluster.md: method, batch, buckets and expected memory of each.

    python tools/npu_recipes.py

The widths of the models are those of their published config.json files. Everything else comes from the recipes in
config/cluster/npu_8x64g and from paddlemix.settings.memory, whose docstring has the formula.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

from paddlemix.settings.memory import GB, Memory, count_parameters, expected_memory
from paddlemix.settings.model import ImageConfig, LlavaConfig, TextConfig, VisionConfig
from paddlemix.settings.run.loader import load_settings
from paddlemix.settings.run.training import TrainingSettings

CARDS, CARD_BYTES = 8, 65536 * 2**20
FOLDER = ROOT / "config" / "cluster" / "npu_8x64g"

CLIP_336 = VisionConfig(1024, 4096, 24, 16, 336, 14)
CLIP_224 = VisionConfig(1024, 4096, 24, 16, 224, 14)
# The tower of InternVL-Chat-ViT-6B-Vicuna-7B: InternViT-6B-224px, run at 336 pixels.
INTERN_VIT = VisionConfig(
    3200,
    12800,
    48,
    25,
    336,
    14,
    model_type="intern_vit_6b",
    select_layer=-4,
    extra={"position_grid": 16, "qkv_bias": False, "qk_normalization": True},
)


def _llama(width: int, inner: int, layers: int, heads: int, keys: int | None = None, words: int = 32000) -> TextConfig:
    return TextConfig(words, width, inner, layers, heads, keys or heads)


LLAMA_7B, LLAMA_13B = _llama(4096, 11008, 32, 32), _llama(5120, 13824, 40, 40)
YI_34B = _llama(7168, 20480, 60, 56, keys=8, words=64000)


@dataclass(frozen=True)
class Recipe:
    """One line of the table. ``tiles``: the most that a row holds; ``beat``: somebody else's figure."""

    file: str
    config: LlavaConfig
    tiles: int
    beat: str


def _whole(text: TextConfig, vision: VisionConfig) -> LlavaConfig:
    return LlavaConfig(text, vision, ImageConfig(vision.image_size, vision.image_size))


RECIPES = (
    Recipe("llava_v1_5_7b", _whole(LLAMA_7B, CLIP_336), 1, "LLaVA-1.5-7B, MindSpeed-MM: 3632 (48.3 rows/s on 8)"),
    Recipe("llava_v1_5_13b", _whole(LLAMA_13B, CLIP_336), 1, "Llama2-13B without images, MindFormers: 1691"),
    Recipe("llava_v1_6_7b", _whole(LLAMA_7B, CLIP_336), 5, "Llama2-7B without images, MindFormers: 4160"),
    Recipe("llava_v1_6_34b_lora", _whole(YI_34B, CLIP_336), 5, "none; InternVL2-26B full, MindSpeed-MM: 750"),
    Recipe("internvl_chat_7b", _whole(LLAMA_7B, INTERN_VIT), 1, "none; InternVL2-8B, MindSpeed-MM: 2914"),
    Recipe("mv_llava_7b", _whole(LLAMA_7B, CLIP_224), 4, "none; LLaVA-1.5-7B as above"),
)


def load(recipe: Recipe) -> TrainingSettings:
    """The settings of a recipe, through the loader that a run uses."""
    return load_settings([str(FOLDER / f"{recipe.file}.json")])


def memory(recipe: Recipe, plain_attention: bool = False) -> Memory:
    """Expected bytes on each of the cards, with the fused attention of the plug-in or without."""
    return expected_memory(recipe.config, load(recipe), CARDS, tiles=recipe.tiles, plain_attention=plain_attention)


def row(recipe: Recipe) -> str:
    """One line of the table in Markdown."""
    settings, need, plain = load(recipe), memory(recipe), memory(recipe, plain_attention=True).total
    training, data = settings.training, settings.data
    method = f"LoRA, rank {settings.model.lora_rank}" if settings.model.lora else "full"
    batch = f"{training.per_device_train_batch_size} x {training.gradient_accumulation_steps}"
    step, last = data.pad_to_multiple_of or 1, data.max_length
    together = training.tensor_parallel_degree
    divided = training.sharding or (f"tensor parallel {together}" if together > 1 else "none")
    numbers = count_parameters(recipe.config).total / 1e9
    parts = (need.weights, need.gradients, need.optimizer, need.activations, need.logits, need.reserve)
    detail = " + ".join(f"{part / GB:.1f}" for part in parts)
    return (
        f"| `{recipe.file}.json` | {numbers:.1f} | {method} | {divided} | {batch} | {step} ... {last} "
        f"| {detail} = **{need.total / GB:.0f}** | {plain / GB:.0f} | {recipe.beat} |"
    )


def table() -> list[str]:
    """The whole table."""
    head = "| recipe | 10^9 | trains | divided by | rows x steps | buckets | GB a card | with plain attention "
    head += "| others, tokens/s a card |"
    return [head, "|---|---|---|---|---|---|---|---|---|", *(row(recipe) for recipe in RECIPES)]


if __name__ == "__main__":
    print("\n".join(table()))
