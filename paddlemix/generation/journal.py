# SPDX-License-Identifier: Apache-2.0
"""A file that a long run adds to, so that the run can go on after any kill: finished batches are never done again."""

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paddlemix.utils.errors import ConfigError


class Journal:
    """One line of JSON for the settings of a run, then one for each finished batch.

    A line counts when it is whole: what a kill (or a power cut) leaves of the last one is cut off. ``done`` maps batch
    numbers to their records. ConfigError when the file belongs to a run with other settings, or another process is
    writing to it.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        self.done: dict[int, list[dict[str, Any]]] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._stream = open(path, "a+b")  # noqa: SIM115 - it stays open for the whole run, close() ends it
        try:
            _lock(self._stream, path)
            self._recover(dict(settings))
        except ConfigError:
            self._stream.close()
            raise

    def _recover(self, settings: dict[str, Any]) -> None:
        self._stream.seek(0)
        lines, size = _whole_lines(self._stream.read())
        self._stream.truncate(size)
        if not lines:
            self._add({"settings": settings})
            return
        # As they come back from a file: lists for tuples.
        self._same(lines[0].get("settings", {}), json.loads(json.dumps(settings)))
        self.done = {line["batch"]: line["records"] for line in lines[1:]}

    def _same(self, former: dict[str, Any], settings: dict[str, Any]) -> None:
        for name in sorted({*former, *settings}):
            if former.get(name) != settings.get(name):
                raise ConfigError(
                    f"{self.path}: the run that stopped here had {name} {former.get(name)!r}, this one has "
                    f"{settings.get(name)!r}; give the same, another --output-dir, or --restart to begin anew"
                )

    def add(self, batch: int, records: list[dict[str, Any]]) -> None:
        """Write a finished batch; it is on the disk when this returns."""
        self._add({"batch": batch, "records": records})
        self.done[batch] = records

    def _add(self, line: Mapping[str, Any]) -> None:
        self._stream.write(json_bytes(line) + b"\n")
        self._stream.flush()
        os.fsync(self._stream.fileno())

    def close(self) -> None:
        """Give the file free."""
        self._stream.close()

    def remove(self) -> None:
        """The run is complete and its result is published: the journal is not needed any more."""
        self.close()
        self.path.unlink(missing_ok=True)


def json_bytes(value: Any, indent: int | None = None) -> bytes:
    """JSON in UTF-8. Half a character (a lone surrogate, which an input file can hold) is written as its escape."""
    return json.dumps(value, ensure_ascii=False, indent=indent).encode("utf-8", "backslashreplace")


def _whole_lines(data: bytes) -> tuple[list[dict[str, Any]], int]:
    """The lines in front of the first one that is not whole, and how many bytes they are."""
    lines: list[dict[str, Any]] = []
    size = 0
    for line in data.splitlines(keepends=True):
        try:
            value = json.loads(line)
        except ValueError:
            break
        if not line.endswith(b"\n") or not isinstance(value, dict):
            break
        lines.append(value)
        size += len(line)
    return lines, size


def _lock(stream: Any, path: Path) -> None:
    """Two processes on one journal would interleave their lines."""
    with contextlib.suppress(ImportError):
        import fcntl

        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(
                f"{path}: another process is working on this part; choose another --split-index"
            ) from error
