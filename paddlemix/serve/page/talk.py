# SPDX-License-Identifier: Apache-2.0
"""A conversation of the page: its turns, what a worker is asked, and what a log keeps of it."""

import re
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paddlemix.serve.page.pictures import Picture, in_a_row

SEPARATE, VIEWS, SHEET = "separate", "views", "sheet"
ARRANGEMENTS = (SEPARATE, VIEWS, SHEET)
"""How the pictures of a question belong together: each for itself, views of one object, sheets of views."""
REPEAT = 4
"""How often a lone view is shown, as MV-LLaVA was trained."""
LONGEST = 4096
"""Largest answer in tokens that the page asks for."""


@dataclass(frozen=True)
class Settings:
    """What the controls stand at. ``grid``: views along a side of a sheet."""

    model: str
    temperature: float = 0.2
    top_p: float = 0.7
    tokens: int = 512
    arrangement: str = SEPARATE
    grid: int = 2


@dataclass
class Turn:
    """One question with its pictures, and what came of it.

    ``error`` is what a person is told instead of an answer, or behind one that broke off.
    """

    text: str
    pictures: tuple[Picture, ...] = ()
    arrangement: str = SEPARATE
    grid: int = 2
    answer: str = ""
    error: str = ""
    model: str = ""
    stopped: bool = False
    strip: Path | None = None
    """A file with all pictures in a row, for the window."""

    def content(self) -> str | list[dict[str, Any]]:
        """The content of the question in OpenAI's form; FileNotFoundError when a picture is no longer kept."""
        if not self.pictures:
            return self.text
        addresses = [picture.address() for picture in self.pictures]
        return [*self._parts(addresses), {"type": "text", "text": self.text}]

    def _parts(self, addresses: list[str]) -> list[dict[str, Any]]:
        if self.arrangement == SEPARATE:
            return [{"type": "image_url", "image_url": {"url": address}} for address in addresses]
        views: dict[str, Any] = {"urls": addresses}
        if self.arrangement == SHEET:
            views["grid"] = self.grid
        elif len(addresses) == 1:
            views["repeat"] = REPEAT
        return [{"type": "image_views", "image_views": views}]


def _literally(text: str) -> str:
    """A text as Markdown that shows it as it is."""
    return re.sub(r"([\\`*_{}\[\]<>#|~$])", r"\\\1", text)


@dataclass
class Talk:
    """All turns of one conversation, of which only the last one can be without an answer.

    ``dropped``: it was cleared, perhaps while a question of it was on its way.
    """

    turns: list[Turn] = field(default_factory=list)
    dropped: bool = False
    id: str = field(default_factory=lambda: secrets.token_hex(8))

    def asked(self, text: str, pictures: tuple[Picture, ...], settings: Settings, folder: Path) -> None:
        """A new question. One that failed before it makes room, and leaves its pictures."""
        kept = self.turns[:-1] if self.turns and not self.turns[-1].answer else self.turns
        if len(kept) < len(self.turns):
            pictures = (*self.turns[-1].pictures, *pictures)
        turn = Turn(text, pictures, settings.arrangement, settings.grid, model=settings.model)
        turn.strip = in_a_row(pictures, folder)
        self.turns = [*kept, turn]

    def again(self, settings: Settings) -> None:
        """The last question is asked anew, of the model that is chosen now, with what the controls stand at now."""
        last = self.turns[-1]
        last.answer, last.error, last.model, last.stopped = "", "", settings.model, False
        last.arrangement, last.grid = settings.arrangement, settings.grid

    def body(self, settings: Settings) -> dict[str, Any]:
        """The request for the answer to the last question."""
        messages: list[dict[str, Any]] = []
        for turn in self.turns:
            messages.append({"role": "user", "content": turn.content()})
            if turn is not self.turns[-1]:
                messages.append({"role": "assistant", "content": turn.answer})
        return {
            "model": settings.model,
            "messages": messages,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "max_tokens": settings.tokens,
            "stream": True,
        }

    def shown(self, waiting: str = "") -> list[dict[str, Any]]:
        """The messages of a chat window; ``waiting`` stands for an answer that has not begun."""
        found: list[dict[str, Any]] = []
        for turn in self.turns:
            pictures = [{"path": str(turn.strip)}] if turn.strip is not None and turn.strip.exists() else []
            found.append({"role": "user", "content": [*pictures, turn.text]})
            said = [text for text in (turn.answer, turn.error and f"⚠️ {_literally(turn.error)}") if text]
            if said or (waiting and turn is self.turns[-1]):
                found.append({"role": "assistant", "content": "\n\n".join(said) or waiting})
        return found

    def texts(self) -> list[dict[str, str]]:
        """The texts of the conversation, for a log."""
        found = []
        for turn in self.turns:
            found += [{"role": "user", "content": turn.text}, {"role": "assistant", "content": turn.answer}]
        return found
