# SPDX-License-Identifier: Apache-2.0
"""Votes on answers, a line of JSON each. The names are those of LLaVA's log."""

import json
import os
import time
from pathlib import Path

from paddlemix.serve.page.talk import Settings, Talk
from paddlemix.utils.errors import ConfigError

UP, DOWN, FLAG = "upvote", "downvote", "flag"


class Votes:
    """A file to which votes are added. ``texts``: with the conversation, else a vote tells of none.

    Many processes may write to one file: a line is one write at its end.
    """

    def __init__(self, path: Path, *, texts: bool = False) -> None:
        self.path = path
        self.texts = texts
        self._add(b"")  # what cannot be written is found at the start

    def add(self, kind: str, talk: Talk, settings: Settings) -> None:
        """A vote on the last answer."""
        last = talk.turns[-1]
        line = {
            "tstamp": round(time.time(), 4),
            "type": kind,
            "model": last.model,
            "conversation": talk.id,
            "turn": len(talk.turns),
            "pictures": sum(len(turn.pictures) for turn in talk.turns),
            "temperature": settings.temperature,
            "top_p": settings.top_p,
        }
        if self.texts:
            line["state"] = {"messages": talk.texts()}
        self._add((json.dumps(line, ensure_ascii=False) + "\n").encode("utf-8", "replace"))

    def _add(self, data: bytes) -> None:
        try:
            file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                os.write(file, data)
            finally:
                os.close(file)
        except OSError as error:
            raise ConfigError(
                f"--vote-log {self.path}: cannot be written ({error.strerror}); choose another"
            ) from error
