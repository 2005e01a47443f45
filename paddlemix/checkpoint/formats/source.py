# SPDX-License-Identifier: Apache-2.0
"""A folder of weights as one source of named tensors, whichever format its files have."""

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from paddlemix.checkpoint.formats.base import FLOATS, TensorFile, TensorInfo, fill
from paddlemix.checkpoint.formats.limits import brief, plain_name
from paddlemix.checkpoint.formats.pdparams import PdparamsFile
from paddlemix.checkpoint.formats.safetensors import SafetensorsFile
from paddlemix.checkpoint.formats.torch_zip import TorchZipFile
from paddlemix.utils.errors import CheckpointError
from paddlemix.utils.foreign import read_json, require_regular
from paddlemix.utils.paths import begins_at

WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "model_state.pdparams",
)
"""What a folder of weights is looked through for, best first: safetensors hold numbers only.

A single file goes before an index, as in transformers: an index beside it is left from other weights.
"""

_MAX_INDEX_BYTES = 16 << 20
_RELEASED = 32 << 20
"""Bytes that are read of a tensor before its file pages are given back: they would count beside the model's own."""


class TensorSource:
    """Named tensors of one or more files. ``notes`` holds what was chosen, for the report."""

    def __init__(self, where: Path, files: Iterable[TensorFile], notes: Iterable[str] = ()) -> None:
        self.where = where
        self.notes = list(notes)
        self._owner: dict[str, TensorFile] = {}
        self._infos: dict[str, TensorInfo] = {}
        for file in files:
            for name, info in file.infos().items():
                if name in self._owner:
                    raise CheckpointError(
                        f'{where}: tensor "{name}" is in two files, {self._owner[name].path.name} and {file.path.name}'
                    )
                self._owner[name], self._infos[name] = file, info

    def infos(self) -> dict[str, TensorInfo]:
        """Every tensor: shape, dtype name and file."""
        return dict(self._infos)

    def view(self, name: str) -> np.ndarray:
        """Read-only array over the mapped file, shape and dtype as in ``infos``; bfloat16 comes as uint16."""
        return self._file(name).view(name)

    def read(self, name: str) -> np.ndarray:
        """A contiguous copy of the values, shape and dtype as in ``infos``; bfloat16 comes as uint16."""
        return np.array(self.view(name), order="C")

    def fill(
        self,
        name: str,
        target: np.ndarray,
        target_dtype: str,
        *,
        transpose: bool = False,
        choose: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> bool:
        """Cast a tensor into ``target``, a block at a time, and give its file pages back.

        ``target`` has the tensor's shape (``[in, out]`` of a stored ``[out, in]`` with ``transpose``) and holds
        ``target_dtype``. With ``choose`` only what it gives of the stored array is read and cast, and has that shape.
        False when a value is not finite. CheckpointError for a tensor that is no float weight.
        """
        info = self._infos[name]
        if info.dtype not in FLOATS:
            raise CheckpointError(
                f'{info.file}: tensor "{name}" is {info.dtype}; weights must be one of {", ".join(FLOATS)} '
                "(quantised checkpoints are not read)"
            )
        view = self.view(name) if choose is None else choose(self.view(name))
        step = max(1, _RELEASED * len(view) // max(1, view.nbytes)) if view.ndim else 1
        finite = True
        for start in range(0, len(view) if view.ndim else 1, step):
            here = slice(start, start + step) if view.ndim else ...
            part = target[:, here] if transpose else target[here]
            finite &= fill(view[here], info.dtype, part, target_dtype, transpose=transpose)
            self._owner[name].release(name)
        return finite

    def release(self, name: str) -> None:
        """Give the file pages of a tensor back; it can be read again."""
        self._file(name).release(name)

    def mapped(self, name: str) -> np.ndarray | None:
        """Like ``view`` (same shape and dtype), copy-on-write over the file; None where the format cannot offer it."""
        file = self._file(name)
        return file.mapped(name) if isinstance(file, SafetensorsFile) else None

    def _file(self, name: str) -> TensorFile:
        if name not in self._owner:
            raise CheckpointError(f'{self.where}: no tensor "{name}"')
        return self._owner[name]


def open_file(path: str | Path) -> TensorSource:
    """One weight file; its kind is known by its ending, its soundness by its content."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file{begins_at(path)}")
    return TensorSource(path, [_open_one(path)])


def open_folder(folder: str | Path) -> TensorSource:
    """The weights of a model folder; safetensors are preferred over ``.bin`` and the source says so.

    CheckpointError lists what was looked for when there are none, and names shards and tensors of a wrong index.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder{begins_at(folder)}")
    require_regular(folder, WEIGHT_FILES, CheckpointError)
    found = [name for name in WEIGHT_FILES if (folder / name).is_file()]
    if not found:
        raise CheckpointError(f"{folder}: no weights; looked for {', '.join(WEIGHT_FILES)}{_loose_shards(folder)}")
    chosen = found[0]
    notes = [f"{folder}: took {chosen}, left {', '.join(found[1:])} unread"] if len(found) > 1 else []
    if chosen.endswith(".index.json"):
        return _open_index(folder / chosen, notes)
    return TensorSource(folder, [_open_one(folder / chosen)], notes)


def _open_one(path: Path) -> TensorFile:
    if path.suffix == ".safetensors":
        return SafetensorsFile(path)
    if path.suffix == ".pdparams":
        return PdparamsFile(path)
    if path.suffix not in (".bin", ".pt", ".pth"):
        raise CheckpointError(f"{path}: unknown kind of weight file (known: .safetensors, .bin, .pt, .pth, .pdparams)")
    return TorchZipFile(path)


def _loose_shards(folder: Path) -> str:
    shards = sorted(path.name for pattern in ("*.safetensors", "*.bin") for path in folder.glob(pattern))
    return f"; it holds {', '.join(shards[:3])} but no index of them" if shards else ""


def _open_index(path: Path, notes: list[str]) -> TensorSource:
    weight_map = _read_index(path)
    by_shard: dict[str, list[str]] = {}
    for name, shard in weight_map.items():
        by_shard.setdefault(shard, []).append(name)
    files: list[TensorFile] = []
    for shard, names in sorted(by_shard.items()):
        if not (path.parent / shard).is_file():
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise CheckpointError(
                f"{path}: the shard {shard} is missing; it holds {', '.join(names[:3])}{more}. Download it"
            )
        files.append(_open_one(path.parent / shard))
        held = files[-1].infos()
        for name in names:
            if name not in held:
                raise CheckpointError(f'{path}: tensor "{name}" should be in {shard} but is not')
    return TensorSource(path.parent, files, notes)


def _read_index(path: Path) -> dict[str, str]:
    weight_map = read_json(path, CheckpointError, _MAX_INDEX_BYTES, unique=True).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f'{path}: expected an object with a "weight_map" of tensor names to file names')
    for name, shard in weight_map.items():
        plain = isinstance(shard, str) and shard not in (".", "..") and not set(shard) & set("/\\")
        if not plain or not plain_name(shard) or len(shard.encode()) > 255 or not plain_name(name):
            raise CheckpointError(
                f"{path}: tensor {brief(name)} points to {brief(shard)}; only plain file names are allowed"
            )
    return weight_map
