# SPDX-License-Identifier: Apache-2.0
"""All rows of a training configuration looked at, and what was found written down."""

import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from paddlemix.datasets.build import make_encoder
from paddlemix.datasets.lazy import LazyRows, Look, open_all, read_all
from paddlemix.datasets.mixture import draw, quotas
from paddlemix.datasets.reading import picture_rules, used_entries
from paddlemix.datasets.rows import UnreadKeys
from paddlemix.datasets.sample import BadSamples
from paddlemix.datasets.sources import HOLDING_IMAGES, LINES, DatasetEntry, raw_rows
from paddlemix.settings.run.training import TrainingSettings
from paddlemix.trainer.inputs import find_inputs, progress_bar
from paddlemix.trainer.preparation import open_start
from paddlemix.utils import files
from paddlemix.utils.errors import ConfigError, DataError
from paddlemix.utils.journal import json_bytes
from paddlemix.utils.logging import say
from paddlemix.utils.shown import counted, readable
from paddlemix.validate import report
from paddlemix.validate.survey import Look as RowLook
from paddlemix.validate.survey import Survey, fingerprint, survey

BAD_ROWS = 3
"""Exit code when rows cannot be used."""

_SHOWN_KEYS = 100
_PLACE = re.compile(r"(?P<file>.*?):(?P<record> ?/?\d+)", re.DOTALL)


@dataclass(frozen=True)
class Options:
    """How a look is done. ``processes``: those of the planned training; ``jobs``: those that look."""

    folder: Path
    jobs: int = 1
    decode: bool = False
    processes: int = 1
    write_clean: Path | None = None


class _Faults(BadSamples):
    """Rows that cannot be read, in the order of the files."""

    def __init__(self) -> None:
        super().__init__("skip")
        self.found: list[tuple[str, str]] = []

    def add(self, error: DataError, where: str, index: int | None = None) -> None:
        super().add(error, where, index)
        self.found.append((where, str(error)))


@dataclass(frozen=True)
class _Part:
    """The rows of ``dataset.train`` or ``dataset.eval``."""

    name: str
    entries: list[DatasetEntry]
    samples: LazyRows
    faults: _Faults
    unread: UnreadKeys

    @property
    def files(self) -> list[str]:
        """The data files in order."""
        return [file for entry in self.entries for file in entry.data_files]


def validate(settings: TrainingSettings, options: Options, *, first_stage: bool = False) -> int:
    """Look at every row and image of the run that ``settings`` describe; 0, or 3 when rows cannot be used.

    Writes ``bad_rows.jsonl``, ``summary.json`` and ``lengths.png`` (for evaluation rows ``..._eval``) into
    ``options.folder``, and the rows that can be used to ``options.write_clean``. The rules and the sentences are those
    of the training. ConfigError, CheckpointError, DataError for what is no matter of single rows.
    """
    find_inputs(settings, first_stage=first_stage)
    opened = open_start(settings)
    encoder = make_encoder(settings, opened.config, opened.tokenizer, opened.template(settings))
    parts = _parts(settings, options)
    _check_clean(parts, options.write_clean)
    options.folder.mkdir(parents=True, exist_ok=True)
    asked = {
        "template": encoder.template.name, "max_length": settings.data.max_length, "decode": options.decode,
        "model": str(settings.model.model_name_or_path), "tokens": opened.tokenizer.vocab_size,
        "image": repr(opened.config.image), "data": repr(settings.data),
    }  # fmt: skip
    bad = [_look(part, settings, RowLook(encoder, options.decode), options, asked) for part in parts]
    unread = UnreadKeys()
    for part in parts:
        unread.add(part.unread)
    if note := unread.note():
        say(f"note: {note}")
    if options.write_clean is not None:
        _write_clean(parts[0], bad[0], options.write_clean)
    say(f"written to {options.folder}")
    return BAD_ROWS if any(bad) else 0


def _parts(settings: TrainingSettings, options: Options) -> list[_Part]:
    found = []
    for name, entries in used_entries(settings).items():
        faults, unread = _Faults(), UnreadKeys()
        with progress_bar(settings, "rows read") as progress:
            look = Look(rules=picture_rules(settings))  # only whether the image folder is there
            samples, _ = read_all(open_all(entries), faults, unread, look, jobs=options.jobs, progress=progress)
        found.append(_Part(name, entries, samples, faults, unread))
    if not found:
        raise ConfigError('no rows to look at: set "data_path" or "dataset", and "do_train" or "do_eval"')
    return found


def _look(part: _Part, settings: TrainingSettings, look: RowLook, options: Options, asked: dict[str, Any]) -> set[str]:
    """Look at a part, write and say what was found; the places of the rows that cannot be used."""
    ending = "" if part.name == "train" else f"_{part.name}"
    journal = options.folder / f"progress{ending}.jsonl"
    began = time.monotonic()
    with progress_bar(settings, "rows looked at") as progress:
        key = fingerprint(part.files, asked)
        found = survey(part.samples, look, journal, key, jobs=options.jobs, progress=progress)
    seconds = max(time.monotonic() - began, 1e-9)
    faults = [(place, reason, "") for place, reason in part.faults.found]
    faults += [(part.samples[row].place, *fault) for row, fault in sorted(found.faults.items())]
    faults.sort(key=lambda fault: _order(fault[0], part.files))
    drawn = _an_epoch(part, found, settings) if part.name == "train" else None
    data = report.summary(found, len(part.faults.found), settings, options.processes, drawn)
    data["unread_keys"] = {readable(key): count for key, count in part.unread.counts.most_common(_SHOWN_KEYS)}
    (options.folder / f"summary{ending}.json").write_bytes(json_bytes(data, indent=2) + b"\n")
    bad = b"".join(json_bytes(_bad_row(*fault)) + b"\n" for fault in faults)
    (options.folder / f"bad_rows{ending}.jsonl").write_bytes(bad)
    if len(found.faults) < len(found.facts):
        report.draw_lengths(options.folder / f"lengths{ending}.png", found, settings.data.max_length)
    journal.unlink(missing_ok=True)  # the next look is at images that may have been repaired
    looked = len(part.samples) - found.reused
    say(f"{part.name}: {looked:,} rows looked at, {looked / seconds:,.0f} rows/s")
    if found.reused:
        say(f"  {found.reused:,} rows are from the look that stopped ({journal})")
    for line in report.lines(data):
        say(f"  {line}")
    for place, reason, _ in faults[:3]:
        say(f"  {reason if reason.startswith(place) else f'{place}: {reason}'}")
    if len(faults) > 3:
        say(f"  and {len(faults) - 3:,} more in {options.folder / f'bad_rows{ending}.jsonl'}")
    return {place for place, _, _ in faults}


def _an_epoch(part: _Part, found: Survey, settings: TrainingSettings) -> np.ndarray:
    """Those of the rows that can be used that the first epoch reads (int64 [n]), as ``repeat`` and ``weight`` say."""
    entry = np.repeat(np.arange(len(part.entries)), part.samples.sizes)
    sizes = np.bincount(np.delete(entry, list(found.faults)), minlength=len(part.entries)).tolist()
    portions = [one.portion for one in part.entries]
    if all(one.whole for one in portions):
        return np.arange(sum(sizes))
    return draw(sizes, quotas(sizes, portions), settings.training.seed, 0)


def _order(place: str, names: list[str]) -> tuple[int, int]:
    """Where a row stands in the files of a part."""
    found = _PLACE.fullmatch(place)
    if found is None or found["file"] not in names:
        return len(names), 0
    return names.index(found["file"]), int(found["record"].strip(" /"))


def _bad_row(place: str, reason: str, image: str) -> dict[str, str]:
    found = _PLACE.fullmatch(place)
    file, record = (found["file"], found["record"].strip()) if found else (place, "")
    own = reason.removeprefix(place).lstrip(": ") if reason.startswith(place) else reason
    return {"file": readable(file), "record": record, "reason": readable(own), "image": readable(image)}


def _check_clean(parts: list[_Part], target: Path | None) -> None:
    if target is None:
        return
    if target.suffix.lower() not in (".json", *LINES):
        raise ConfigError(f"--write-clean {target}: give a name that ends with .json or .jsonl")
    if not target.parent.is_dir():
        raise ConfigError(f"--write-clean {target}: there is no folder {target.parent}; make it first")
    if any(target.resolve() == Path(name).resolve() for part in parts for name in part.files):
        raise ConfigError(f"--write-clean {target}: this is a file of the data set; give another name")
    own = [name for part in parts for name in part.files if name.lower().endswith(HOLDING_IMAGES)]
    if own:
        raise ConfigError(
            f"--write-clean {target}: the images are in {own[0]} itself; leave the flag out, and train with "
            '"on_bad_sample": "skip"'
        )
    if parts[0].name != "train":
        raise ConfigError(f'--write-clean {target}: it takes the rows of the training; leave it out without "do_train"')
    roots = sorted({entry.image_folder or "" for entry in parts[0].entries})
    if len(roots) > 1:
        raise ConfigError(
            f"--write-clean {target}: one file cannot hold rows with {len(roots)} image folders ({', '.join(roots)}); "
            'look at one entry at a time: give its file with "--data_path"'
        )


def _write_clean(part: _Part, bad: set[str], target: Path) -> None:
    lines = target.suffix.lower() in LINES
    before, between, behind = ("", "\n", "\n") if lines else ("[\n", ",\n", "\n]\n")
    count = 0
    with files.atomic_stream(target) as stream:
        for place, row in (pair for one in part.samples.chosen for pair in raw_rows(one)):
            if place not in bad:
                text = (between if count else before) + json.dumps(row, ensure_ascii=False)
                stream.write(text.encode("utf-8", "backslashreplace"))
                count += 1
        stream.write((behind if count or not lines else "").encode())
    say(f"{counted(count, 'row')} that can be used: {target}")
    if keys := sorted({key for entry in part.entries for key in _choosing(entry)}):
        say(
            f"note: these are the rows that {', '.join(keys)} leave for training, each of them once, "
            "without those held out; a file of each entry keeps the mixture"
        )


def _choosing(entry: DatasetEntry) -> Iterator[str]:
    """The keys of an entry that say which of its rows are read, and how often."""
    selection, portion = entry.selection, entry.portion
    used = {
        "sampling_strategy": selection.strategy != "all", "max_samples": selection.max_samples is not None,
        "eval_split": selection.eval_split is not None, "repeat": portion.repeat != 1,
        "weight": portion.weight is not None,
    }  # fmt: skip
    return (key for key, there in used.items() if there)
