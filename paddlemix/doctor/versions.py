# SPDX-License-Identifier: Apache-2.0
"""Which versions of driver, CANN, paddle and plug-in are known to go together, and what to say about others.

The plug-in is built against one paddle and one CANN and calls both without asking for their versions, so a wrong pair
shows as a missing symbol, or as a crash. The table holds what the makers of paddle publish, with the place and date.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from paddlemix.doctor.findings import Finding, note, ok, warn

PLUGIN = "paddle-custom-npu"
LOWEST_TOKENIZERS = "0.19"
"""As in setup.py: ``ignore_merges``, which Llama-3's files have, came with it."""


@dataclass(frozen=True)
class Combination:
    """Versions that were published together. An empty text means: not said there (CANN of a wheel on the index)."""

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
    *(
        Combination("", "", version, version, "3.10", "paddle's package index: wheels of both (read 2026-11)")
        for version in ("3.0.0.dev20260115", "3.0.0rc1", "3.0.0rc0", "3.0.0b2", "3.0.0b1")
    ),
    Combination("23.0.3", "8.0.RC1", "3.0.0b0", "3.0.0b0", "3.9",
                "PaddleNLP 3.0.0b4, llm/devices/npu/llama (read 2026-11)"),
    Combination("23.0.3", "8.0.T13", "3.0.0.dev20240520", "3.0.0.dev20240719", "3.9",
                "PaddleMIX of 2024-10, README (read 2026-11); its Python is too old for this project"),
)  # fmt: skip
"""Chip of all of them: Ascend 910B. The index had no plug-in for paddle 3.1 to 3.3 then. Guides of others
(PaddleOCR-VL, vLLM Ascend; read 2026-11) name a file for 3.2.0, Python 3.10, aarch64, without a
CANN: nothing of it is known here.
"""

RECOMMENDED = KNOWN[0]

CHIPS = (
    ("910B", ""),
    ("910A", "needs paddle's release 2.6, which this project does not serve"),
    ("910Pro", "needs paddle's release 2.6, which this project does not serve"),
    (
        "310",
        "runs models converted for it (OM files) and trains nothing; paddle's makers advise a 910B for this plug-in",
    ),
    (
        "Ascend910",
        "(A3, 910C: two chips a card) has no release of the plug-in: its makers had no plan for it in 2026-03",
    ),
    ("910_93", "(A3, 910C: two chips a card) has no release of the plug-in: its makers had no plan for it in 2026-03"),
)
"""How the names of npu-smi begin, and what is known of paddle on them (issues of Paddle and PaddleX, read 2026-11)."""


def judge_chip(name: str) -> Finding | None:
    """A line about a chip of which more or something else is to be said than of the 910B; None for that one."""
    said = next(
        (text for begin, text in CHIPS if name.startswith(begin)), "is not known here; all that is known is the 910B"
    )
    return note("chip", f"{name} {said}") if said else None


def judge(found: Mapping[str, str | None]) -> Finding:
    """One line about ``driver``, ``cann``, ``paddle`` and ``plugin`` together; None is a version that is not known."""
    plugin, paddle = found.get("plugin"), found.get("paddle")
    if plugin is None:
        return note("combination", f"{PLUGIN} is not installed: nothing to compare")
    for known in KNOWN:
        if _fits(known, found):
            if not known.cann:
                text = f"released together ({known.source}); which CANN they want is not said there"
                return note("combination", f"{text}, here is {found['cann']}", source=known.source)
            return ok("combination", f"known to go together ({known.source})", source=known.source)
    want = f"published together: CANN {RECOMMENDED.cann}, paddle {RECOMMENDED.paddle}, plug-in {RECOMMENDED.plugin}"
    if paddle is not None and release(plugin) != release(paddle):
        return note(
            "combination",
            f"plug-in {plugin} was built for paddle {release(plugin)}, but paddle is {paddle}: install the plug-in of "
            f"the same version; {want}",
        )
    return note("combination", f"not in the table of known combinations; {want}; the self-check decides")


def judge_tokenizers(installed: str | None) -> Finding | None:
    """A line about a library ``tokenizers`` that is missing or too old for byte-level vocabularies; else None.

    Nothing asks for its version later: an older one passes over what a ``tokenizer.json`` says of merges.
    """
    numbers = [int(part) for part in re.findall(r"\d+", installed or "0")[:2]]
    if numbers >= [int(part) for part in LOWEST_TOKENIZERS.split(".")]:
        return None
    what = f"is {installed}" if installed else "is not installed"
    text = f"{what}; models with a byte-level vocabulary (Llama-3, Qwen, SmolLM) need {LOWEST_TOKENIZERS} or newer"
    return warn("tokenizers", f'{text}: pip install "tokenizers>={LOWEST_TOKENIZERS}"')


def release(version: str) -> str:
    """``3.0.0.dev20250527`` and ``3.0.0b0`` are of release ``3.0.0``."""
    found = re.match(r"\d+(\.\d+)*", version)
    return found.group(0) if found else version


def _fits(known: Combination, found: Mapping[str, str | None]) -> bool:
    pairs = (("driver", known.driver), ("cann", known.cann), ("paddle", known.paddle), ("plugin", known.plugin))
    return all(not value or found.get(name) in (None, value) for name, value in pairs) and found.get("cann") is not None
