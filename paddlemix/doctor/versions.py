# SPDX-License-Identifier: Apache-2.0
"""Which versions of driver, CANN, paddle and plug-in are known to go together, and what to say about others.

The plug-in is built against one paddle and one CANN and calls both without asking for their versions, so a wrong pair
shows as a missing symbol, or as a crash. The table holds what the makers of paddle publish, with the place and date.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from paddlemix.doctor.findings import Finding, note, ok

PLUGIN = "paddle-custom-npu"


@dataclass(frozen=True)
class Combination:
    """Versions that were published together. An empty text means: not said there."""

    driver: str
    cann: str
    paddle: str
    plugin: str
    python: str
    source: str


KNOWN = (
    Combination("", "8.0.0", "3.0.0", "3.0.0", "3.10",
                "paddlepaddle.org.cn, guide for Ascend NPU, image 3.0.0-cann800-ubuntu20-npu-910b (read 2026-11)"),
    Combination("23.0.3", "8.0.0", "3.0.0.dev20250527", "3.0.0.dev20250527", "",
                "PaddleOCR 3.x, guide for Ascend NPU, image cann800-ubuntu20-npu-910b-base (read 2026-11)"),
    Combination("23.0.3", "8.0.RC1", "3.0.0b0", "3.0.0b0", "3.9",
                "PaddleNLP 3.0.0b4, llm/devices/npu/llama (read 2026-11)"),
    Combination("23.0.3", "8.0.T13", "3.0.0.dev20240520", "3.0.0.dev20240719", "3.9",
                "PaddleMIX of 2024-10, README (read 2026-11); its Python is too old for this project"),
)  # fmt: skip
"""Chip of all of them: Ascend 910B. The 910A needs paddle's release 2.6 and is not served by this project."""

RECOMMENDED = KNOWN[0]


def judge(found: Mapping[str, str | None]) -> Finding:
    """One line about ``driver``, ``cann``, ``paddle`` and ``plugin`` together; None is a version that is not known."""
    plugin, paddle = found.get("plugin"), found.get("paddle")
    if plugin is None:
        return note("combination", f"{PLUGIN} is not installed: nothing to compare")
    for known in KNOWN:
        if _fits(known, found):
            return ok("combination", f"known to go together ({known.source})", source=known.source)
    want = f"published together: CANN {RECOMMENDED.cann}, paddle {RECOMMENDED.paddle}, plug-in {RECOMMENDED.plugin}"
    if paddle is not None and release(plugin) != release(paddle):
        return note(
            "combination",
            f"plug-in {plugin} was built for paddle {release(plugin)}, but paddle is {paddle}: install the plug-in of "
            f"the same version; {want}",
        )
    return note("combination", f"not in the table of known combinations; {want}; the self-check decides")


def release(version: str) -> str:
    """``3.0.0.dev20250527`` and ``3.0.0b0`` are of release ``3.0.0``."""
    found = re.match(r"\d+(\.\d+)*", version)
    return found.group(0) if found else version


def _fits(known: Combination, found: Mapping[str, str | None]) -> bool:
    pairs = (("driver", known.driver), ("cann", known.cann), ("paddle", known.paddle), ("plugin", known.plugin))
    return all(not value or found.get(name) in (None, value) for name, value in pairs) and found.get("cann") is not None
