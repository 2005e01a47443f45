# SPDX-License-Identifier: Apache-2.0
"""The examples that a page offers: questions about pictures, out of a file of JSON lines."""

from dataclasses import dataclass
from pathlib import Path

from paddlemix.serve.page.talk import ARRANGEMENTS, SEPARATE
from paddlemix.utils.commands import ROOT
from paddlemix.utils.errors import ConfigError
from paddlemix.utils.foreign import JsonValue, parse_json, read_text
from paddlemix.utils.shown import shown

SAMPLES = ROOT / "examples" / "shapes" / "page.jsonl"
"""The drawn pictures of a checkout; an installed package has none."""
_MOST = 8


@dataclass(frozen=True)
class Example:
    """A question and the files of its pictures."""

    text: str
    files: tuple[Path, ...]
    arrangement: str = SEPARATE


def read_examples(file: Path | None) -> list[Example]:
    """The first examples of a file (None: the drawn pictures, where they are). ConfigError names a line that is wrong.

    A line is ``{"question": TEXT, "image": PATH or [PATHS], "arrangement": "separate", "views" or "sheet"}``; paths
    are relative to the file.
    """
    if file is None:
        return read_examples(SAMPLES) if SAMPLES.is_file() else []
    lines = read_text(file, ConfigError).splitlines()
    found = []
    for number, line in enumerate(lines[:_MOST], 1):
        where = f"{file}:{number}"
        found.append(_example(parse_json(line, where, ConfigError), where, file.parent))
    return found


def _example(row: JsonValue, where: str, folder: Path) -> Example:
    if not isinstance(row, dict) or not isinstance(row.get("question"), str):
        raise ConfigError(f'{where}: expected an object with "question" and "image"')
    names = row.get("image")
    names = names if isinstance(names, list) else [names]
    files = []
    for name in names:
        if not isinstance(name, str) or not (folder / name).is_file():
            raise ConfigError(f'{where}: "image" names {shown(name)}, which is no file beside it')
        files.append(folder / name)
    arrangement = row.get("arrangement", SEPARATE)
    if arrangement not in ARRANGEMENTS:
        raise ConfigError(f'{where}: "arrangement" is {shown(arrangement)}; expected {", ".join(ARRANGEMENTS)}')
    return Example(row["question"], tuple(files), arrangement)
