# SPDX-License-Identifier: Apache-2.0
"""Figures that the authors of the models have published, for tables beside ours, with where they stand.

VQAv2, VizWiz, MMBench and MMBench-CN are of the authors' servers (test splits). SEED-Bench of LLaVA-1.5 is of images
and
videos; models that give images alone have no figure here. LLaVA-Bench and MM-Vet are by judges of their time.
"""

from collections.abc import Mapping
from dataclasses import dataclass

LLAVA = "LLaVA, docs/MODEL_ZOO.md"
SHARE4V = "ShareGPT4V, docs/ModelZoo.md"
INTERNVL = "InternVL, documentation of InternVL-Chat-V1-1"
_ORDER = ("vqav2", "gqa", "vizwiz", "scienceqa", "textvqa", "pope", "mme", "mmbench", "mmbench-cn", "seed",
          "llava-bench", "mm-vet")  # fmt: skip


@dataclass(frozen=True)
class Published:
    """A row. ``values``: main metrics by benchmark, as tables of scores hold them (shares of 1; MME in points)."""

    model: str
    source: str
    values: Mapping[str, float]


def _row(model: str, source: str, figures: str) -> Published:
    """``figures`` in the order of ``_ORDER``, in percent (MME: points of perception), "-" where there is none."""
    named = dict(zip(_ORDER, figures.split(), strict=True))
    values = {
        name: float(text) if name == "mme" else round(float(text) / 100, 4)
        for name, text in named.items()
        if text != "-"
    }
    return Published(model, source, values)


PUBLISHED = (
    _row("LLaVA-1.5-7B", LLAVA, "78.5 62.0 50.0 66.8 58.2 85.9 1510.7 64.3 58.3 58.6 65.4 31.1"),
    _row("LLaVA-1.5-13B", LLAVA, "80.0 63.3 53.6 71.6 61.3 85.9 1531.3 67.7 63.6 61.6 72.5 36.1"),
    _row("LLaVA-1.6-7B (Vicuna)", LLAVA, "81.8 64.2 57.6 70.1 64.9 86.5 1519 67.4 60.6 - 81.6 43.9"),
    _row("LLaVA-1.6-13B (Vicuna)", LLAVA, "82.8 65.4 60.5 73.6 67.1 86.2 1575 70.0 64.4 - 87.3 48.4"),
    _row("LLaVA-1.6-7B (Mistral)", LLAVA, "82.2 64.8 60.0 72.8 65.7 86.7 1498 68.7 61.2 - 83.2 47.3"),
    _row("LLaVA-1.6-34B (Yi)", LLAVA, "83.7 67.1 63.8 81.8 69.5 87.7 1631 79.3 79.0 - 89.6 57.4"),
    _row("ShareGPT4V-7B", SHARE4V, "80.6 63.3 57.2 68.4 60.4 - 1567.4 68.8 62.2 - 72.6 37.6"),
    _row("ShareGPT4V-13B", SHARE4V, "81.0 64.8 55.6 71.2 62.2 - 1618.7 68.5 63.7 - 79.9 43.1"),
    _row("InternVL-Chat-V1-0 (13B, 336 px)", INTERNVL, "80.2 63.9 54.6 70.1 58.7 87.1 1546.9 66.5 61.9 - - 33.7"),
    _row("InternVL-Chat-V1-0 (13B, 448 px)", INTERNVL, "82.0 64.1 60.1 71.6 64.8 87.2 1579.0 68.2 64.0 - - 36.7"),
    _row("InternVL-Chat-V1-1", INTERNVL, "80.9 62.5 57.3 90.1 68.6 87.1 1659.8 75.4 70.3 - - 46.7"),
)
"""Read in the files named; MME is its perception."""


def of(benchmark: str) -> list[Published]:
    """The rows that have a figure for a benchmark."""
    return [row for row in PUBLISHED if benchmark in row.values]
