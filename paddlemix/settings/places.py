# SPDX-License-Identifier: Apache-2.0
"""Where the folder that a name means may lie on this machine: one rule for models, bases and vision towers."""

import itertools
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from paddlemix.utils import env, paths
from paddlemix.utils.paths import expanded, machine_path

_LEVELS = 4
"""Folders above a model that are looked through, for the layout ``<root>/<owner>/<model>``."""
_PUBLISHED = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
_SNAPSHOTS = "snapshots"
_WEIGHTS = ("*.safetensors", "*.bin", "*.pdparams")


def places(name: str, near: Sequence[Path] = (), published: Iterable[str] = ()) -> list[Path]:
    """Folders that ``name`` may mean, best first; whether they exist is not asked.

    - the name as a path, relative to the current folder;
    - for each folder of ``near`` (the model, its base), and each place that links to it lead to: inside it and beside
      it by whole name and by last part, and above it (``<root>/<owner>/<model>``) by whole name, or by the last two
      parts of an absolute path that another machine wrote;
    - ``$PPMIX_HOME/models``, and the caches of huggingface_hub and ModelScope;
    - the same for the names of ``published``.
    """
    path = machine_path(name)
    found = [path] if path.is_absolute() else []
    for folder in _with_targets(near):
        found += _around(path, folder)
    if not path.is_absolute():
        found += [Path.cwd() / path, *downloaded(name)]
    for twin in published:
        found += [place for folder in _with_targets(near) for place in _around(Path(twin), folder)]
        found += [Path.cwd() / twin, *downloaded(twin)]
    return list(dict.fromkeys(map(snapshot_of, found)))


def downloaded(name: str) -> list[Path]:
    """Folders that hold the published model ``name`` if some program has downloaded it."""
    return list(dict.fromkeys(map(snapshot_of, (cache() / name, *_hub_caches(name)))))


def cache() -> Path:
    """Folder of downloaded models."""
    return paths.home("models")


def snapshot_of(folder: Path) -> Path:
    """The newest state of a folder of huggingface_hub's cache (``models--owner--name``); any other folder as it is."""
    states = folder / _SNAPSHOTS
    if not folder.name.startswith("models--") or not states.is_dir():
        return folder
    main = folder / "refs" / "main"
    named = states / main.read_text(encoding="utf-8", errors="replace").strip() if main.is_file() else None
    if named is not None and named.is_dir():
        return named
    return max((state for state in states.iterdir() if state.is_dir()), key=_age, default=folder)


def published_name(folder: Path) -> str:
    """``owner/name`` of a snapshot in huggingface_hub's cache; the last part of the path of any other folder."""
    parts = folder.parts
    if len(parts) > 2 and parts[-2] == _SNAPSHOTS and parts[-3].startswith("models--"):
        return parts[-3].removeprefix("models--").replace("--", "/", 1)
    return folder.name


def has_weights(folder: Path) -> bool:
    """Whether a file of weights lies in a folder: caches often hold the small files alone."""
    return any(next(folder.glob(pattern), None) is not None for pattern in _WEIGHTS)


def _age(folder: Path) -> float:
    return folder.stat().st_mtime


def _with_targets(near: Sequence[Path]) -> Iterator[Path]:
    """The folders, and those that links among them lead to."""
    seen = set()
    for folder in itertools.chain.from_iterable((*_links(item.absolute()), item.resolve()) for item in near):
        if folder not in seen:
            seen.add(folder)
            yield folder


def _links(folder: Path) -> Iterator[Path]:
    """``folder`` and, while that is a link, where it leads to."""
    seen = set()
    while folder not in seen:
        seen.add(folder)
        yield folder
        if folder.is_symlink():
            folder = Path(os.path.normpath(folder.parent / folder.readlink()))


def _around(path: Path, folder: Path) -> Iterator[Path]:
    whole = Path(*path.parts[-2:]) if path.is_absolute() else path
    yield folder / whole
    yield folder / path.name
    for parent in itertools.islice(folder.parents, _LEVELS):
        if parent != Path(parent.anchor):
            yield parent / whole
    # Chat models write "pretrained/InternViT-6B-224px" for the folder beside them.
    yield folder.parent / path.name
    if folder.parent.name == _SNAPSHOTS:
        yield from _in_hub_cache(folder.parents[2], whole.as_posix())


def _hub_caches(name: str) -> Iterator[Path]:
    """Where huggingface_hub and ModelScope keep a published model."""
    home = env.raw("HF_HOME") or "~/.cache/huggingface"
    hub = env.raw("HF_HUB_CACHE") or env.raw("HUGGINGFACE_HUB_CACHE") or f"{home}/hub"
    yield from _in_hub_cache(Path(expanded(hub)), name)
    if _PUBLISHED.fullmatch(name):
        root = Path(expanded(env.raw("MODELSCOPE_CACHE") or "~/.cache/modelscope/hub"))
        for below, text in itertools.product(("models", "."), (name, name.replace(".", "___"))):
            yield root / below / text


def _in_hub_cache(root: Path, name: str) -> Iterator[Path]:
    if _PUBLISHED.fullmatch(name):
        yield root / f"models--{name.replace('/', '--')}"
