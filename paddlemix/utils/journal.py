# SPDX-License-Identifier: Apache-2.0
"""A file that a long run adds to, so that the run can go on after any kill: finished batches are never done again."""

import contextlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Generic, TypeGuard, TypeVar

from paddlemix.utils.errors import ConfigError, PaddleMixError
from paddlemix.utils.files import adding_to
from paddlemix.utils.foreign import JsonValue, parse_json
from paddlemix.utils.shown import shown

Record = TypeVar("Record", bound=Mapping[str, Any])
"""What a run makes of each of its inputs: plain JSON data."""


class Journal(Generic[Record]):
    """One line of JSON for the settings of a run, then one for each finished batch of records.

    A line counts when it is whole: what a kill (or a power cut) leaves of the last one is cut off. ``done`` maps batch
    numbers to their records. ``fits(batch, records)`` says whether records can be those of a batch; from the first line
    on that has another form, another number or records that do not fit, the batches are done again. ConfigError when
    the file belongs to a run with other settings (``anew``: what to give in their place), is no journal, or another
    process is writing to it (``in_use``: what to do then). With ``take`` the records of a batch are handed to it and
    not kept: ``done`` has an empty list for each. Of a million records they would take half a gigabyte.
    """

    def __init__(
        self,
        path: Path,
        settings: Mapping[str, Any],
        fits: Callable[[int, list[Any]], TypeGuard[list[Record]]],
        in_use: str = "choose another --split-index",
        anew: str = "another --output-dir, or --restart to begin anew",
        take: Callable[[int, list[Record]], None] | None = None,
    ) -> None:
        self.path = path
        self._anew = anew
        self._take = take
        self.done: dict[int, list[Record]] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        # Without a buffer: what a full disk does not take would come again when the file is closed.
        self._stream = open(path, "a+b", buffering=0)  # noqa: SIM115 - it stays open for the whole run, close() ends it
        try:
            _lock(self._stream, path, in_use)
            self._recover(dict(settings), fits)
        except PaddleMixError:
            self._stream.close()
            raise

    def _recover(self, settings: dict[str, Any], fits: Callable[[int, list[Any]], TypeGuard[list[Record]]]) -> None:
        self._stream.seek(0)
        size = 0
        for number, line in enumerate(self._stream.read().splitlines(keepends=True)):
            value = _value(line)
            if not number and line.endswith(b"\n"):
                # As they come back from a file: lists for tuples.
                self._same(value, json.loads(json.dumps(settings)))
            elif number and _is_batch(value, number - 1) and fits(number - 1, value["records"]):
                self._note(number - 1, value["records"])
            else:
                break
            size += len(line)
        self._stream.truncate(size)
        if not size:
            self._add({"settings": settings})

    def _same(self, line: JsonValue, settings: dict[str, Any]) -> None:
        former = line.get("settings") if isinstance(line, dict) else None
        if not isinstance(former, dict):
            raise ConfigError(f"{self.path}: not the journal of a run; remove it, or --restart to begin anew")
        for name in sorted({*former, *settings}):
            if former.get(name) != settings.get(name):
                before, now = (shown(one[name]) if one.get(name) is not None else None for one in (former, settings))
                raise ConfigError(
                    f"{self.path}: the run that stopped here had {f'{name} {before}' if before else f'no {name}'}, "
                    f"this one has {now or 'none'}; give the same, {self._anew}"
                )

    def add(self, batch: int, records: list[Record]) -> None:
        """Write a finished batch; it is on the disk when this returns. TrainingError when the disk is full."""
        self._add({"batch": batch, "records": records})
        self._note(batch, records)

    def _note(self, batch: int, records: list[Record]) -> None:
        if self._take is not None:
            self._take(batch, records)
        self.done[batch] = records if self._take is None else []

    def _add(self, line: Mapping[str, Any]) -> None:
        rest = memoryview(json_bytes(line) + b"\n")
        with adding_to(self.path):
            while rest:
                rest = rest[self._stream.write(rest) :]
            os.fsync(self._stream.fileno())

    def close(self) -> None:
        """Give the file free."""
        self._stream.close()

    def remove(self) -> None:
        """The run is complete and its result is published: the journal is not needed any more."""
        self.close()
        self.path.unlink(missing_ok=True)


def json_bytes(value: JsonValue, indent: int | None = None) -> bytes:
    """JSON in UTF-8. Half a character (a lone surrogate, which an input file can hold) is written as its escape."""
    return json.dumps(value, ensure_ascii=False, indent=indent).encode("utf-8", "backslashreplace")


def _value(line: bytes) -> Any:
    """The JSON of a whole line; None for what a kill or another program has left."""
    try:
        return parse_json(line.decode(), "", ConfigError, halves=True) if line.endswith(b"\n") else None
    except (ConfigError, UnicodeDecodeError):
        return None


def _is_batch(value: JsonValue, batch: int) -> bool:
    if not isinstance(value, dict) or type(value.get("batch")) is not int or value["batch"] != batch:
        return False
    records = value.get("records")
    return isinstance(records, list) and all(isinstance(record, dict) for record in records)


def _lock(stream: BinaryIO, path: Path, in_use: str) -> None:
    """Two processes on one journal would interleave their lines."""
    with contextlib.suppress(ImportError):
        import fcntl

        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(f"{path}: another process is working on this part; {in_use}") from error
