# SPDX-License-Identifier: Apache-2.0
"""How much work a run has done, and which share of the device's peak that is (MFU).

Counted are the operations that the model needs, as in PaLM (Chowdhery et al. 2022, appendix B): what recompute does
again is not counted, a padded position is not, and a frozen part needs no gradients of its weights.
"""

import functools
import re
from dataclasses import astuple, dataclass

import numpy as np

from paddlemix.settings.memory import count_parameters
from paddlemix.settings.model import LlavaConfig
from paddlemix.trainer.batches import Batch, count_tokens
from paddlemix.utils import npu_cards

PEAKS: dict[str, float] = {
    "GB200": 2.5e15,
    "B200": 2.25e15,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H800 PCIe": 756e12,
    "H800": 989e12,
    "H20": 148e12,
    "A100": 312e12,
    "A800": 312e12,
    "A40": 149.7e12,
    "A10": 125e12,
    "L40S": 362.05e12,
    "L40": 181.05e12,
    "L20": 119.5e12,
    "RTX 4090": 165.2e12,
    "910B2": 376e12,
    "910B3": 313e12,
    "910B4": 280e12,
}
"""Dense bfloat16 operations a second, from the makers' data sheets, by a word or words of the device's name."""


@dataclass
class Done:
    """What a process has trained: positions without and with padding, sums of squared row lengths, tiles, rows."""

    tokens: float = 0
    positions: float = 0
    squares: float = 0
    tiles: float = 0
    rows: float = 0

    def add(self, batch: Batch) -> None:
        """Count a micro-batch (``token_ids`` int64 [B, L])."""
        rows, length = batch["token_ids"].shape
        self.tokens += count_tokens(batch)
        self.positions += rows * length
        self.squares += float((_segment_lengths(batch) ** 2).sum())
        self.tiles += 0 if batch.get("pixels") is None else len(batch["pixels"])
        self.rows += rows

    def since(self, other: "Done") -> "Done":
        """What was done after ``other``."""
        return Done(*(now - before for now, before in zip(astuple(self), astuple(other), strict=True)))

    @property
    def padding(self) -> float:
        """Share of the positions that is padding, from 0 to 1."""
        return 1 - self.tokens / self.positions if self.positions else 0.0


def _segment_lengths(batch: Batch) -> np.ndarray:
    """Lengths (int64) of the stretches that attend to themselves: rows, or the samples of packed rows."""
    segments = batch.get("segments")
    if segments is None:
        return batch["positions"].max(axis=1) + 1
    keys = np.arange(len(segments))[:, None] * (int(segments.max(initial=0)) + 1) + segments
    return np.bincount(keys[segments > 0])


def operations(done: Done, config: LlavaConfig, trained: dict[str, int]) -> float:
    """Floating point operations that the model needs for ``done``, forward and backward.

    ``trained``: numbers that train, of ``decoder`` (adapters among them), ``projector`` and ``tower``. A matrix of n
    numbers takes 2 n operations a position forward, 2 n for the gradient of its input where something before it trains,
    and 2 n for its own.
    """
    counts, text = count_parameters(config), config.text
    table = 0 if text.tie_word_embeddings else text.vocab_size * text.hidden_size  # looked up, not multiplied
    decoder = counts.decoder - table
    width = text.num_attention_heads * text.width_per_head
    total = done.tokens * (4.0 * decoder + 2.0 * trained["decoder"])
    total += 12.0 * text.num_hidden_layers * width * done.squares
    if config.vision is not None:
        patches = done.tiles * config.tokens_per_tile
        below = 2.0 if trained["tower"] else 0.0
        total += patches * ((2.0 + below) * counts.projector + 2.0 * trained["projector"])
        seen = done.tiles * config.vision.grid**2
        total += seen * ((2.0 + below) * counts.tower + 2.0 * trained["tower"])
    return total


def peak_of(name: str) -> float | None:
    """Dense bfloat16 operations a second of a device with this name, or None where it is not known."""
    words = re.split(r"[\s_-]+", name.upper())
    for known, peak in sorted(PEAKS.items(), key=lambda item: -len(item[0])):
        if all(word in words for word in known.upper().split()):
            return peak
    return None


@functools.cache
def device_peak(device: str) -> float | None:
    """The peak of ``gpu:0`` or ``npu:0``; None for a CPU and for devices that the table does not name."""
    kind, _, number = device.partition(":")
    if kind == "gpu":
        import paddle

        return peak_of(paddle.device.cuda.get_device_name(int(number or 0)))
    if kind == "npu":
        cards = npu_cards.read_cards().cards
        return peak_of(cards[0].name) if cards else None
    return None
