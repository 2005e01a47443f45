# SPDX-License-Identifier: Apache-2.0
"""The text of an answer as ``Answer.text`` has it, while it comes."""

from paddlemix.utils.constants import IMAGE_TOKEN


class CleanText:
    """Text without white space around it and without image places that the model wrote itself, piece by piece.

    What ``put`` and ``end`` return, joined, is ``text.replace("<image>", "").strip()`` of all that was put.
    """

    def __init__(self) -> None:
        self._raw = ""  # may be the beginning of an image place
        self._blank = ""  # white space that is given only when something follows
        self._begun = False

    def put(self, piece: str) -> str:
        """The text that is certain now."""
        *whole, self._raw = (self._raw + piece).split(IMAGE_TOKEN)
        keep = next((size for size in range(len(IMAGE_TOKEN) - 1, 0, -1) if self._raw.endswith(IMAGE_TOKEN[:size])), 0)
        certain, self._raw = self._raw[: len(self._raw) - keep], self._raw[len(self._raw) - keep :]
        return self._trimmed("".join(whole) + certain)

    def end(self) -> str:
        """The rest, when nothing more comes."""
        rest, self._raw = self._raw, ""
        return self._trimmed(rest)

    def _trimmed(self, text: str) -> str:
        text = self._blank + text
        if not self._begun:
            text = text.lstrip()
        kept = text.rstrip()
        self._blank = text[len(kept) :] if kept or self._begun else ""
        self._begun = self._begun or bool(kept)
        return kept
