# SPDX-License-Identifier: Apache-2.0
"""The last line of a demo: what was reached beside what is promised. A missed promise is no error of the run."""

from pathlib import Path

from paddlemix.utils.commands import near

PROMISED = 0.97
"""Part of the answers about unseen images that is right, with every seed and every order of sums (docs/demo.md)."""


def verdict(what: str, reached: float, results: Path, seed: int, promised: float = PROMISED) -> str:
    """``what`` is the sentence "... in 98.2 % ..." that tells ``reached``; ``results`` is the file to report."""
    least = f"{100 * promised:.0f} %"
    if reached >= promised:
        return f"{what} ({least} are promised)."
    return (
        f"{what}, less than the {least} that the demo promises. Nothing is broken, but please report it with "
        f"{near(results)}; --seed {seed + 1} draws everything anew."
    )
