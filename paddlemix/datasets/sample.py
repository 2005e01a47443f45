# SPDX-License-Identifier: Apache-2.0
"""One conversation with its images, and the record of those that could not be used."""

import json
from dataclasses import dataclass
from multiprocessing.sharedctypes import RawArray
from pathlib import Path

import numpy as np

from paddlemix.imaging.views import Film, Views
from paddlemix.text.messages import Message
from paddlemix.utils.errors import DataError
from paddlemix.utils.files import adding_to
from paddlemix.utils.shown import readable


@dataclass(frozen=True)
class Sample:
    """One row of a data file, in one form whatever the file's form was.

    ``messages`` are as written, before any template. ``images`` are paths (joined with the image folder) or addresses,
    in the order of their places. ``where`` names file and record in errors. ``image_root`` is the folder that images
    must lie in, empty when no image folder is named; ``chat_template`` the chat_template.json of the entry, if it has
    one. With ``views`` the images are views of one object and stand together at a single place. Of preference tuning:
    ``rejected`` is the answer that ``messages`` do not end with, ``desirable`` what is thought of the one that they do.
    """

    messages: tuple[Message, ...]
    images: tuple[str, ...]
    id: str
    where: str
    image_root: str = ""
    chat_template: str | None = None
    views: Views | Film | None = None
    rejected: str | None = None
    desirable: bool | None = None

    @property
    def place(self) -> str:
        """``where`` without the id: file and record alone."""
        return self.where.removesuffix(id_note(self.id))

    @property
    def places(self) -> int:
        """Image places that the text must have."""
        return min(len(self.images), 1) if self.views else len(self.images)


def id_note(name: str) -> str:
    """What follows the place of a row that has an id, where errors name it."""
    return f' (id "{name[:80]}")' if name else ""


class BadSamples:
    """What happens to rows that cannot be used: ``error`` raises, ``skip`` counts and names them.

    With ``skip`` each bad row is written once, as a line of ``path`` (bad_samples.jsonl), from ``begin`` on; a run that
    goes on does not list again what stands there. The marks
    lie in shared memory, so that worker processes and the main process count together. DataError when more than one row
    and more than the share ``limit`` of them is bad. Every process of a distributed run reads the files; only the
    ``primary`` one writes down what it finds there.
    """

    GOOD, TRUNCATED, BAD = 1, 2, 3

    def __init__(
        self, policy: str = "error", path: str | Path | None = None, *, primary: bool = True, limit: float = 0.01
    ) -> None:
        if policy not in ("error", "skip"):
            raise DataError(f'on_bad_sample is "{policy}": expected "error" or "skip"')
        self.policy = policy
        self.path = None if path is None else Path(path)
        self.primary = primary
        self.limit = limit
        self.unread = 0
        self.rows = 0
        self._begun = False
        self._listed: set[str] = set()
        self._waiting: list[tuple[str, DataError]] = []
        self._marks = RawArray("b", 1)

    def begin(self, rows: int) -> None:
        """Say how many usable rows there are; before it, every row counts as ``unread`` (bad in its file)."""
        self.rows = rows
        self._marks = RawArray("b", max(rows, 1))
        self._begun = True
        if self.path is not None and self.path.is_file():
            self._listed = set(self.path.read_text(encoding="utf-8", errors="replace").split("\n"))
        for where, error in self._waiting:
            self._write(where, error)
        self._waiting.clear()
        self._check_share()

    def mark(self, index: int, truncated: bool) -> None:
        """Row ``index`` was used, as a whole or cut at its end."""
        self._marks[index] = self.TRUNCATED if truncated else self.GOOD

    def add(self, error: DataError, where: str, index: int | None = None) -> None:
        """Row ``index`` (None while the file is being read) cannot be used. Raises ``error`` under ``error``."""
        if self.policy == "error":
            raise error
        if index is None:
            self.unread += 1
        elif self._marks[index] == self.BAD:
            return
        else:
            self._marks[index] = self.BAD
        if index is not None or self.primary:
            self._write(where, error)
        if self.rows:
            self._check_share()

    @property
    def skipped(self) -> int:
        """Rows that were found bad up to now."""
        return self.unread + self._count(self.BAD)

    @property
    def truncated(self) -> int:
        """Rows that were cut at ``max_length`` up to now."""
        return self._count(self.TRUNCATED)

    def summary(self) -> str:
        """``skipped 3 of 1200 rows (list: ...); cut 5 rows at max_length``, or an empty string."""
        total = self.rows + self.unread
        parts = []
        if self.skipped:
            listed = f" (list: {self.path})" if self.path else ""
            parts.append(f"skipped {self.skipped} of {total} rows{listed}")
        if self.truncated:
            parts.append(f"cut {self.truncated} rows at max_length")
        return "; ".join(parts)

    def _count(self, mark: int) -> int:
        return int((np.frombuffer(self._marks, dtype=np.int8) == mark).sum())

    def _write(self, where: str, error: DataError) -> None:
        if self.path is None:
            return
        if not self._begun:
            # The folder belongs to a run only when that has looked at everything that could stop it.
            self._waiting.append((where, error))
            return
        line = json.dumps({"where": readable(where), "reason": str(error)}, ensure_ascii=False)
        if line in self._listed:
            return
        self._listed.add(line)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with adding_to(self.path), open(self.path, "a", encoding="utf-8") as stream:
            stream.write(line + "\n")

    def _check_share(self) -> None:
        total = self.rows + self.unread
        if self.skipped > max(1, self.limit * total):
            listed = f"; they are listed in {self.path}" if self.path else ""
            raise DataError(
                f"{self.skipped} of {total} rows cannot be used, more than {self.limit:.0%}{listed}. Correct the data, "
                'or raise "skip_limit"; it keeps a wrong image folder from training on what is left'
            )
