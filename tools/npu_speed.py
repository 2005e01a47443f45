# SPDX-License-Identifier: Apache-2.0
"""The expected speed of the NPU recipes on paper: work, memory traffic and messages of an update, and what they take.

    python tools/npu_speed.py          the table of docs/npu-speed.md

Nobody has measured it. Counted are products (FLOPs), values that the other operators read and write, and bytes that the
cards send each other (tools/npu_traffic.py); the rates of ``CARD`` are assumptions, and stand in the document.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if not __package__:
    sys.path[0] = str(ROOT)

from paddlemix.settings.memory import count_parameters
from paddlemix.settings.model import TextConfig
from tools import npu_recipes
from tools.npu_recipes import CARDS, RECIPES, Recipe


@dataclass(frozen=True)
class Card:
    """Rates of one card. ``*_share``: what of the rate large operators are assumed to reach."""

    flops: float = 313e12
    product_share: float = 0.75
    attention_share: float = 0.45
    memory: float = 1.6e12
    memory_share: float = 0.6
    link: float = 100e9


CARD = Card()

READ_AND_WRITTEN = {"forward": (10, 8, 3), "backward": (29, 12, 5)}
"""bf16 values that the operators of a decoder layer which are no products read and write for each position, with all
fused operators: in model widths that are whole on every card in tensor parallel, in model widths that are divided, and
in MLP widths. Forward: two norms (4) and two sums (6); rotary (4) and attention (4); SwiGLU (3). Backward: norms (6)
and sums of gradients (23); rotary (4) and attention (8); SwiGLU (5)."""


@dataclass(frozen=True)
class Work:
    """Of one update on one card: FLOPs (``model``: without what is computed again), bytes, positions."""

    positions: int
    model: float
    products: float
    attention: float
    moved: float
    sent: float


def work(recipe: Recipe) -> Work:
    """Count an update of a recipe with rows of full length."""
    settings, text = npu_recipes.load(recipe), recipe.config.text
    training, data = settings.training, settings.data
    together = max(training.tensor_parallel_degree, 1)
    portions = training.gradient_accumulation_steps
    rows, length = training.per_device_train_batch_size * portions, data.max_length
    positions = rows * length
    counts = count_parameters(recipe.config, settings.model.lora_rank if settings.model.lora else 0)
    tables = text.vocab_size * text.hidden_size
    layers, head = counts.decoder - 2 * tables, tables
    again = 1 if training.recompute else 0
    backward = 1 if settings.model.lora else 2  # no gradient of a frozen weight
    each = text.num_hidden_layers * text.hidden_size * length * positions  # half of the scores are computed
    attention = 2.0 * each * (1 + again + 2)
    linear = 2.0 * positions * (layers * (1 + again + backward) + head * (1 + backward))
    linear += 6.0 * positions * counts.adapters
    tower = 2.0 * counts.tower * rows * recipe.tiles * (recipe.config.vision.grid**2 + 1)
    model = linear + attention + tower - again * 2.0 * (positions * layers + each)
    trained = counts.adapters if settings.model.lora else counts.decoder + counts.projector
    moved = _moved(text, positions, again, together) + 60.0 * trained / _shares(training.sharding, together)
    moved += 40.0 * positions * text.vocab_size / together
    sent = _sent(text, positions, trained, portions, again, together)
    return Work(positions, model / together, (linear + tower) / together, attention / together, moved, sent)


def _moved(text: TextConfig, positions: int, again: int, together: int) -> float:
    forward, backward = READ_AND_WRITTEN["forward"], READ_AND_WRITTEN["backward"]
    whole, divided, inner = ((1 + again) * forward[at] + backward[at] for at in range(3))
    values = text.hidden_size * (whole + divided / together) + text.intermediate_size * inner / together
    return 2.0 * positions * text.num_hidden_layers * values


def _shares(sharding: str, together: int) -> int:
    return CARDS // together if sharding else 1


def _sent(text: TextConfig, positions: int, trained: int, portions: int, again: int, together: int) -> float:
    """Bytes that leave a card: gradients once a portion and parameters once (stage2), or two sums a layer and way."""
    if together > 1:
        ways = 2 + again
        return 2 * ways * 2.0 * positions * text.hidden_size * text.num_hidden_layers * 2 * (together - 1) / together
    return 2.0 * trained * (portions + 1) * (CARDS - 1) / CARDS


def seconds(done: Work, card: Card = CARD) -> dict[str, float]:
    """What each part takes, one after the other: nothing is assumed to overlap."""
    return {
        "products": done.products / (card.flops * card.product_share),
        "attention": done.attention / (card.flops * card.attention_share),
        "memory": done.moved / (card.memory * card.memory_share),
        "messages": done.sent / card.link,
    }


def row(recipe: Recipe) -> str:
    """One line of the table in Markdown."""
    done = work(recipe)
    parts = seconds(done)
    total = sum(parts.values())
    rate = done.positions / total / max(npu_recipes.load(recipe).training.tensor_parallel_degree, 1)
    share = done.model / (total * CARD.flops)
    cells = [f"{value:.2f}" for value in parts.values()]
    return (
        f"| `{recipe.file}` | {done.model / 1e15:.2f} | {(done.products + done.attention) / 1e15:.2f} "
        f"| {done.moved / 1e9:.0f} | {done.sent / 1e9:.0f} | {' + '.join(cells)} = {total:.1f} | {share:.0%} "
        f"| {rate:,.0f} |"
    )


def table() -> list[str]:
    """The whole table."""
    head = "| recipe | PFLOP of the model | PFLOP computed | GB moved | GB sent "
    head += "| seconds: products + attention + memory + messages | share of the peak | tokens/s a card |"
    return [head, "|---" * 8 + "|", *(row(recipe) for recipe in RECIPES)]


if __name__ == "__main__":
    print("\n".join(table()))
