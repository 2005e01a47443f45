# SPDX-License-Identifier: Apache-2.0
"""The files that deploy/npu/Dockerfile puts into its image, without building one."""

import re
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def copied() -> list[tuple[str, str]]:
    """(name in the repository, place in the image) of each file or folder that a COPY line names."""
    text = (ROOT / "deploy" / "npu" / "Dockerfile").read_text(encoding="utf-8")
    lines = [line.split() for line in re.findall(r"^COPY (.+)$", text, re.MULTILINE)]
    return [
        (name, target + Path(name).name if target.endswith("/") else target)
        for *names, target in lines
        for name in names
    ]


def make(folder: Path) -> Path:
    """``folder`` with what the image holds."""
    for name, place in copied():
        into = folder / place
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, into, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
        else:
            into.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, into)
    return folder
