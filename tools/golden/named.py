# SPDX-License-Identifier: Apache-2.0
"""Family "named": what the manifest or another file of the folder names is there.

The other families find their cases by listing the folder, so a file that was lost would be a case that nobody misses.
Names come from MANIFEST.md (files, and folders of the tables), SHA256SUMS (whose sums are compared too), the INFO.json
files, ``images.json``, the rows' images, the steps of d_train and the shards of a checkpoint. ``LEFT_OUT.txt`` lists
what a copy of a part leaves out on purpose, a name or a pattern a line.
"""

import json
import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from paddlemix.utils.files import sha256
from tools.golden.case import Case, guarded

LEFT_OUT = "LEFT_OUT.txt"
_FILE = re.compile(
    r"(?<![\w>*.])[A-Za-z0-9_./{},|-]+\.(?:npz|json|png|jpg|bin|safetensors)(?:/\.?(?:npz|json))?(?![A-Za-z0-9*<])"
)
_FOLDER = re.compile(r"^\| *([A-Za-z0-9_.-]+/[A-Za-z0-9_./, -]+?) *\|", re.MULTILINE)
_ROWS = ("train_data.json", "finetune_data.json", "pretrain_data.json", "internvl_data.json")


def run(folder: Path) -> Iterator[Case]:
    """One failure for each name without a file, and one case that counts the names."""
    found = Found(folder)
    names = 0
    for source, read in (("MANIFEST.md", _manifest), ("SHA256SUMS", _sums)):
        if (folder / source).is_file():
            text = (folder / source).read_text(encoding="utf-8")
            for name, digest in read(text):
                names += 1
                yield from guarded(f"named/{source}/{name}", found.missing, source, name, digest)
    for path in sorted(folder.rglob("*.json")):
        for name in _of_json(folder, path):
            names += 1
            yield from guarded(f"named/{path.relative_to(folder)}/{name}", found.missing, path.name, name, None)
    if names:
        yield Case("named/count", 0.0, 0.0, "ok", f"{names} names")


class Found:
    """What lies in the folder, and what is left out of it on purpose."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.paths = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
        listed = folder / LEFT_OUT
        self.left_out = listed.read_text(encoding="utf-8").split() if listed.is_file() else []

    def missing(self, source: str, name: str, digest: str | None) -> Iterator[Case]:
        """A failure when there is no such file or folder anywhere, or when its content is another one."""
        fits = [path for path in self.paths if path == name or path.endswith(f"/{name}")]
        label = f"named/{source}/{name}"
        if any(fnmatchcase(name, pattern) for pattern in self.left_out):
            return
        if not fits:
            yield Case(label, 1.0, 0.0, "fail", f"{source} names it, and it is not in the folder")
        elif digest is not None and sha256(self.folder / name) != digest:
            yield Case(label, 1.0, 0.0, "fail", f"its content is not the one that {source} lists")


def _manifest(text: str) -> Iterator[tuple[str, None]]:
    found = {name for match in _FILE.findall(text) for name in _expanded(match.strip("./,"))}
    for cell in _FOLDER.findall(text):
        first, *others = (part.strip() for part in cell.split(","))
        found |= {first, *(f"{first.rpartition('/')[0]}/{other}" for other in others)}
    for name in sorted(found):
        yield name, None


def _expanded(name: str) -> list[str]:
    """``a_{x,y}.npz``, ``a_{0..3}.npz`` and ``b.npz/json`` as the names that they stand for."""
    both = re.fullmatch(r"(.+)\.(\w+)/\.?(\w+)", name)
    if both:
        return [each for ending in both.groups()[1:] for each in _expanded(f"{both[1]}.{ending}")]
    choice = re.search(r"\{([^{}]*)\}", name)
    if choice is None:
        return [name] if not set(name) & set("{}|,") else []
    ends = re.fullmatch(r"(\d+)\.\.(\d+)", choice[1])
    numbers = range(int(ends[1]), int(ends[2]) + 1) if ends else ()
    parts = [str(number) for number in numbers] or re.split(r"[,|]", choice[1])
    return [each for part in parts for each in _expanded(name[: choice.start()] + part + name[choice.end() :])]


def _sums(text: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        digest, _, name = line.partition(" ")
        if re.fullmatch(r"[0-9a-f]{64}", digest):
            yield name.strip().lstrip("*").removeprefix("./"), digest


def _of_json(folder: Path, path: Path) -> Iterator[str]:
    """Names of other files and folders in a JSON file whose form is known here."""
    name, place = path.name, path.parent.name
    if name == "INFO.json":
        yield from _of_info(_json(path))
    elif name == "images.json":
        yield from (item["file"] for item in _json(path)["images"])
    elif name in _ROWS:
        yield from (row["image"] for row in _json(path) if isinstance(row.get("image"), str))
    elif name.endswith(".index.json"):
        shards = sorted(set(_json(path)["weight_map"].values()))
        yield from (path.with_name(shard).relative_to(folder).as_posix() for shard in shards)
    elif place == "d_train":
        yield path.with_suffix(".npz").relative_to(folder).as_posix()
        model = _json(path).get("model")
        yield from [f"hub/{model}"] if isinstance(model, str) else []


def _of_info(info: dict[str, Any]) -> Iterator[str]:
    for key, facts in info.items():
        yield from [key] if key.endswith(".npz") else []
        if isinstance(facts, dict):
            yield from (f"hub/{facts[part]}" for part in ("dir", "base") if isinstance(facts.get(part), str))


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
