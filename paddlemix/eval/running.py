# SPDX-License-Identifier: Apache-2.0
"""A run over many questions that can be killed at any time and goes on where it was, and divided among devices.

The bytes of its file depend on neither: which questions share a batch follows from their place in the whole, and every
part of a run takes whole blocks of them.
"""

import contextlib
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from paddlemix.eval.asked import part_of
from paddlemix.eval.items import Item, Said
from paddlemix.utils.errors import ConfigError, DataError
from paddlemix.utils.files import atomic_write, sha256
from paddlemix.utils.foreign import read_json
from paddlemix.utils.journal import Journal, json_bytes
from paddlemix.utils.leftovers import ending_on_sigterm
from paddlemix.utils.progress import Progress
from paddlemix.utils.shown import shown

if TYPE_CHECKING:
    from paddlemix.eval.asking import Asker

FORM = "paddlemix answers 1"
"""In the file beside each answer file that says which run made it."""

ANSWERS = "answers.jsonl"
"""The whole answer file of a benchmark, in a folder of its own."""

ANEW = "another --output, or --restart to begin anew"
MOST_BATCHES, LEAST_BLOCKS = 16, 16
"""A block has at most so many batches, and a run at least so many blocks where it has the batches for them: questions
of like length come together within a block, and eight devices have work alike."""

Lines = Callable[[Item, Sequence[Said]], Sequence[str]]
"""What an item and its answers become: lines of the answer file with their line ends."""


@dataclass(frozen=True)
class Job:
    """What a run is made of. ``settings``: all that the answers depend on; a run goes on only with the same.

    ``path`` is the whole answer file. Of ``parts`` parts this process makes the one of number ``index``. ``about`` is
    kept beside the answers for whoever scores them.
    """

    items: Sequence[Item]
    path: Path
    settings: dict[str, Any]
    lines: Lines
    batch_size: int = 8
    parts: int = 1
    index: int = 0
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def own_path(self) -> Path:
        """The file of this part."""
        return self.path if self.parts == 1 else part_path(self.path, self.parts, self.index)

    @property
    def journal(self) -> Path:
        """Where the finished batches are kept while the run goes on."""
        return self.own_path.with_name(f"{self.own_path.name}.journal")


def part_path(path: Path, parts: int, index: int) -> Path:
    """The file of a part: ``3_0.jsonl`` of ``answers.jsonl``, as LLaVA's scripts name it, else ``x.3_0.jsonl``."""
    front = "" if path.name == ANSWERS else f"{path.stem}."
    return path.with_name(f"{front}{parts}_{index}{path.suffix}")


def record_path(path: Path) -> Path:
    """The file that says which run made the answers in ``path``."""
    return path.with_name(f"{path.name}.run.json")


def blocks_of(count: int, batch_size: int) -> list[range]:
    """The blocks of ``count`` questions, in their order."""
    batches = -(-count // batch_size)
    size = batch_size * min(MOST_BATCHES, max(1, batches // LEAST_BLOCKS))
    return [range(first, min(first + size, count)) for first in range(0, count, size)]


class Batches:
    """The batches of one part of ``items`` in their order. Lengths are looked up block by block, when needed."""

    def __init__(
        self, items: Sequence[Item], length: Callable[[Item], int], batch_size: int, parts: int = 1, index: int = 0
    ) -> None:
        self.items, self.length, self.batch_size = items, length, batch_size
        self.blocks = part_of(blocks_of(len(items), batch_size), parts, index)
        self.counts = [-(-len(block) // batch_size) for block in self.blocks]
        self._known: dict[int, list[list[int]]] = {}

    def __len__(self) -> int:
        return sum(self.counts)

    def __getitem__(self, number: int) -> list[int]:
        """The numbers of the items of a batch; the longest questions of a block come first."""
        if number >= len(self):
            raise IndexError(number)
        block = 0
        while number >= self.counts[block]:
            number -= self.counts[block]
            block += 1
        if block not in self._known:
            items, size = self.items, self.batch_size
            order = sorted(self.blocks[block], key=lambda place: (-self.length(items[place]), place))
            self._known = {block: [order[first : first + size] for first in range(0, len(order), size)]}
        return self._known[block][number]

    @property
    def places(self) -> list[int]:
        """The numbers of all items of this part, in the order of the whole."""
        return [place for block in self.blocks for place in block]


def is_done(path: Path, settings: Mapping[str, Any]) -> bool:
    """Whether the answers of a run, or of a part of it, are in ``path``. ConfigError when those there are others."""
    if not path.is_file():
        return False
    if not record_path(path).is_file():
        raise ConfigError(f"{path}: is there, and no run of this command made it; give {ANEW}")
    made = record_of(path)
    former, now = made["settings"], json.loads(json.dumps(settings))
    for name in sorted({*former, *now}):
        if former.get(name) != now.get(name):
            raise ConfigError(
                f"{path}: the answers are of a run with {_told(name, former)}, this one has {_told(name, now)}; "
                f"give the same, {ANEW}"
            )
    if made.get("sha256") != sha256(path):
        raise ConfigError(f"{path}: has been changed since its run ended; give {ANEW}")
    return True


def _told(name: str, settings: Mapping[str, Any]) -> str:
    value = settings.get(name)
    return f"no {name}" if value is None else f"{name} {shown(value)}"


def forget(job: Job) -> None:
    """Remove what earlier runs have left of this part, and the whole file."""
    for path in (job.own_path, job.path):
        for left in (path, record_path(path)):
            left.unlink(missing_ok=True)
    job.journal.unlink(missing_ok=True)


def forget_others(job: Job) -> None:
    """Remove answers and journals of runs with other settings, in the place of this one's."""
    for path in (job.own_path, job.path):
        with contextlib.suppress(ConfigError, DataError):
            if not path.is_file() or is_done(path, job.settings):
                continue
        path.unlink(missing_ok=True)
        record_path(path).unlink(missing_ok=True)
    if job.journal.is_file():
        with open(job.journal, "rb") as stream:
            first = stream.readline()
        if first != json_bytes({"settings": job.settings}) + b"\n":
            job.journal.unlink()


def forget_parts(job: Job) -> None:
    """Remove the files of the parts, once they are joined."""
    for index in range(job.parts if job.parts > 1 else 0):
        path = part_path(job.path, job.parts, index)
        path.unlink(missing_ok=True)
        record_path(path).unlink(missing_ok=True)


def run(job: Job, asker: "Asker", *, name: str, shown: bool = True) -> None:
    """Ask what is not answered yet, and publish the file of this part. ``shown``: with progress.

    ConfigError for the journal of another run."""
    batches = Batches(job.items, asker.length, job.batch_size, job.parts, job.index)

    def fits(number: int, records: list[Any]) -> TypeGuard[list[dict[str, Any]]]:
        return number < len(batches) and _fits(job, batches[number], records)

    journal: Journal[dict[str, Any]] = Journal(
        job.journal, job.settings, fits, in_use="wait for it, or choose another --output", anew=ANEW
    )
    done = sum(len(records) for records in journal.done.values())
    failed = sum(_has_failed(record) for records in journal.done.values() for record in records)
    with (
        contextlib.closing(journal),
        ending_on_sigterm(),
        Progress(name, len(batches.places), _what(job), done=done, silent=not shown) as progress,
    ):
        for number in range(len(journal.done), len(batches)):
            places = batches[number]
            said = asker.ask([job.items[place] for place in places])
            records = [_record(place, answers) for place, answers in zip(places, said, strict=True)]
            journal.add(number, records)
            failed += sum(map(_has_failed, records))
            progress.advance(len(places), f"{failed} failed" if failed else "")
    by_place = {record["item"]: record["said"] for records in journal.done.values() for record in records}
    publish(job.own_path, "".join(_lines(job, batches.places, by_place)), job.settings, job.about)
    journal.remove()


def _what(job: Job) -> str:
    return "questions" if all(len(item.turns) == 1 for item in job.items) else "conversations"


def _record(place: int, answers: Sequence[Said]) -> dict[str, Any]:
    return {"item": place, "said": [[one.text, one.failure, one.finish] for one in answers]}


def _has_failed(record: dict[str, Any]) -> bool:
    return any(failure for _, failure, _ in record["said"])


def _fits(job: Job, places: Sequence[int], records: list[Any]) -> bool:
    return [record.get("item") for record in records] == list(places) and all(
        isinstance(record.get("said"), list)
        and len(record["said"]) == len(job.items[place].turns)
        and all(isinstance(one, list) and [type(part) for part in one] == [str] * 3 for one in record["said"])
        for place, record in zip(places, records, strict=True)
    )


def _lines(job: Job, places: Sequence[int], said: dict[int, list[list[str]]]) -> Iterator[str]:
    for place in places:
        yield from job.lines(job.items[place], [Said(*one) for one in said[place]])


def publish(path: Path, text: str, settings: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Write the record of a run, then its answer file: answers without a record are of somebody else."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = text.encode("utf-8", "backslashreplace")
    record = {"form": FORM, "settings": settings, "about": about, "sha256": hashlib.sha256(data).hexdigest()}
    atomic_write(record_path(path), json.dumps(record, indent=1) + "\n")
    atomic_write(path, data)


def merge(path: Path, parts: int) -> bool:
    """Join the parts of an answer file when all of them are there; returns whether the whole one is there now.

    Its bytes are those of a run in one part. ConfigError when the parts are not of one run.
    """
    if parts == 1:
        return path.is_file()
    paths = [part_path(path, parts, index) for index in range(parts)]
    if not all(one.is_file() and record_path(one).is_file() for one in paths):
        return False
    first = record_of(paths[0])
    for index, one in enumerate(paths):
        try:
            is_done(one, first["settings"])
        except ConfigError as error:  # another remedy: only a run of that part can mend it
            again = f"run this part again with --num-chunks {parts} --chunk-idx {index} --restart"
            raise ConfigError(f"{str(error).rpartition('; give ')[0]}; {again}") from error
    publish(path, "".join(one.read_text(encoding="utf-8") for one in paths), first["settings"], first["about"])
    return True


def parts_there(folder: Path, suffix: str = ".jsonl") -> int:
    """How many parts the run in a folder has, by the names of those that are there; 0 when there is none.

    ConfigError when there are parts of runs that were divided differently.
    """
    names = [re.fullmatch(rf"(\d+)_(\d+){re.escape(suffix)}", path.name) for path in folder.iterdir()]
    counts = {int(name[1]) for name in names if name is not None}
    if len(counts) > 1:
        raise ConfigError(
            f"{folder}: has parts of runs in {' and '.join(map(str, sorted(counts)))} parts; keep those of one"
        )
    return counts.pop() if counts else 0


def record_of(path: Path) -> dict[str, Any]:
    """What the record beside an answer file says. DataError when there is none, or it is none of ours."""
    if not path.name:  # an empty path, a root
        raise DataError(f'"{path}" is no file of answers')
    record = record_path(path)
    if not record.is_file():
        raise DataError(f"{path}: no {record.name} beside it; a run of this command writes both")
    value = read_json(record, DataError)
    known = isinstance(value, dict) and value.get("form") == FORM
    if not known or not isinstance(value.get("settings"), dict) or not isinstance(value.get("about"), dict):
        raise DataError(f"{record}: not a record of a run; give {ANEW}")
    return value
