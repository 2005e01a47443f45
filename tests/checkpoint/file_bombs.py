# SPDX-License-Identifier: Apache-2.0
"""Files of a model folder that unfold in memory. As a program, it reads them one by one and prints what each has cost.

python tests/checkpoint/file_bombs.py FOLDER
"""

import json
import os
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[2])

MIB = 1 << 20


def _header(body: bytes) -> bytes:
    return struct.pack("<Q", len(body)) + body


def _filled(begin: bytes, piece: bytes, size: int, end: bytes) -> bytes:
    return begin + piece * ((size - len(begin) - len(end)) // len(piece)) + end


def _lists(begin: bytes, size: int, end: bytes) -> bytes:
    return _filled(begin, b"[],", size, b"[]" + end)


def _sparse(path: Path, size: int) -> None:
    with path.open("wb") as handle:
        handle.truncate(size)


def _zip(path: Path, members: int) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(members):
            archive.writestr(zipfile.ZipInfo(f"a/{number:050000}"), b"")


def _names(count: int) -> bytes:
    return b"{" + b",".join(b'"%d":1' % number for number in range(count)) + b"}"


def _pieces(count: int) -> bytes:
    """A sentencepiece model of so many pieces."""
    return b"".join(b"\x0a\x0a\x0a\x08" + b"%08d" % number for number in range(count)) + b"\x12\x00"


def _pickle(path: Path, data: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(zipfile.ZipInfo("archive/data.pkl"), data)


_WIDE = "\U0001f600".encode()
_HEADER, _INDEX, _JSON = "model.safetensors", "model.safetensors.index.json", "tokenizer.json"
_CONFIG, _BIN, _MODEL = "config.json", "pytorch_model.bin", "tokenizer.model"
_LONG, _SHORT = b'{"a":[', b"]}"
CONTENT: dict[str, tuple[str, Callable[[], bytes]]] = {
    "header of lists": (_HEADER, lambda: _header(_lists(_LONG, 99 * MIB, _SHORT))),
    "header of lists, small": (_HEADER, lambda: _header(_lists(_LONG, 15 * MIB, _SHORT))),
    "header of names": (_HEADER, lambda: _header(_names(1_200_000))),
    "header of fewer names": (_HEADER, lambda: _header(_names(900_000))),
    "header of one name": (_HEADER, lambda: _header(_filled(b'{"', _WIDE, 15 * MIB, b'":1}'))),
    "index of lists": (_INDEX, lambda: _lists(_LONG, 60 * MIB, _SHORT)),
    "index of lists, small": (_INDEX, lambda: _lists(_LONG, 15 * MIB, _SHORT)),
    "index of names": (_INDEX, lambda: b'{"weight_map":' + _names(900_000) + b"}"),
    "index of one name": (_INDEX, lambda: _filled(b'{"weight_map":{"', _WIDE, 15 * MIB, b'":1}}')),
    "tokenizer of lists": (_JSON, lambda: _lists(_LONG, 128 * MIB, _SHORT)),
    "tokenizer of lists, small": (_JSON, lambda: _lists(_LONG, 23 * MIB, _SHORT)),
    "tokenizer of names": (_JSON, lambda: b'{"model":' + _names(990_000) + b"}"),
    "tokenizer of one text": (_JSON, lambda: _filled(b'{"a":"', _WIDE, 23 * MIB, b'"}')),
    "tokenizer of pieces": (_MODEL, lambda: _pieces(530_000)),
    "tokenizer of fewer pieces": (_MODEL, lambda: _pieces(500_000)),
    "settings of a tokenizer of lists": ("tokenizer_config.json", lambda: _lists(_LONG, 4 * MIB, _SHORT)),
    "configuration of lists": (_CONFIG, lambda: _lists(_LONG, 2 * MIB, _SHORT)),
    "adapter of lists": ("adapter_config.json", lambda: _lists(_LONG, 15 * MIB, _SHORT)),
    "manifest of lists": ("manifest.json", lambda: _lists(b'{"files":[', 4 * MIB, _SHORT)),
}
"""What is wrong, the name of the file, and its content."""
WRITTEN: dict[str, tuple[str, Callable[[Path], object]]] = {
    "archive of many names": (_BIN, lambda path: _zip(path, 200)),
    "pickle of dicts": (_BIN, lambda path: _pickle(path, b"\x80\x02" + b"}" * 16_000_000)),
    "pickle of one text": (
        _BIN,
        lambda path: _pickle(path, b"\x80\x02X" + struct.pack("<I", 15 * MIB) + _WIDE + b"x" * (15 * MIB - 4)),
    ),
    "tokenizer of 20 GB": (_MODEL, lambda path: _sparse(path, 20 << 30)),
    "configuration of 20 GB": (_CONFIG, lambda path: _sparse(path, 20 << 30)),
    **{f"{name} without end": (name, lambda path: os.symlink("/dev/zero", path)) for name in (_HEADER, _INDEX, _BIN)},
    **{f"{name} without end": (name, lambda path: os.symlink("/dev/zero", path)) for name in (_JSON, _MODEL, _CONFIG)},
    **{f"{name} that is a pipe": (name, os.mkfifo) for name in (_HEADER, _INDEX, _BIN, _JSON, _MODEL, _CONFIG)},
    "settings of images that are a pipe": ("preprocessor_config.json", os.mkfifo),
    "tokens that are a pipe": ("special_tokens_map.json", os.mkfifo),
    "adapter that is a pipe": ("adapter_config.json", os.mkfifo),
    "manifest that is a pipe": ("manifest.json", os.mkfifo),
}
"""What is wrong, the name of the file, and what makes it."""


def main() -> None:
    """One JSON line for each file, each read by the function that it is meant for."""
    from paddlemix.checkpoint.formats.source import open_folder
    from paddlemix.checkpoint.lora.read import read_adapter
    from paddlemix.settings.published.config import load_config
    from paddlemix.text.tokenizer import load_tokenizer
    from paddlemix.utils.errors import CheckpointError
    from paddlemix.utils.files import verify_folder
    from tests.cost_kit import cost

    def verify(folder: Path) -> None:
        raise CheckpointError(verify_folder(folder)[0])

    uses = {
        "tokenizer": load_tokenizer,
        "special": load_tokenizer,
        "preprocessor": load_config,
        "config.json": load_config,
        "adapter": read_adapter,
        "manifest": verify,
    }
    written = {name: (file, lambda path, make=make: path.write_bytes(make())) for name, (file, make) in CONTENT.items()}
    for number, (name, (file, write)) in enumerate({**written, **WRITTEN}.items()):
        folder = Path(sys.argv[1]) / str(number)
        folder.mkdir()
        write(folder / file)
        if file == "tokenizer_config.json":
            (folder / _MODEL).write_bytes(_pieces(1))
        use = next((use for begin, use in uses.items() if file.startswith(begin)), open_folder)
        print(json.dumps({"name": name, **cost(use, folder)}), flush=True)
        (folder / file).unlink()


if __name__ == "__main__":
    main()
