# SPDX-License-Identifier: Apache-2.0
"""The words with which MV-LLaVA's format judges a 3D object, and when two of them mean the same."""

import re

QUALITY = {"poor": 1, "relatively poor": 2, "boardline": 3, "relatively good": 4, "good": 5, "perfect": 6}
"""The scores of the answers. "boardline" is how the training data spells it."""

SCALES = ("single_object", "multi_object", "small_scene", "large_scene")
STYLES = ("CAD", "Cartoon", "Photo_realistic")

CORRECT = {"desciption": "description", "boardline": "borderline", "image_pth": "image_path"}
"""Spellings of the format, and the correct ones, which are read as the same."""


def plain(text: str) -> str:
    """An answer in the form in which it is compared: lower case, without quotes and full stop, one kind of space."""
    words = re.sub(r"[\s_\-]+", " ", text.strip().strip("'\"`.").lower()).strip()
    return next((wrong for wrong, right in CORRECT.items() if words == right), words)
