# SPDX-License-Identifier: Apache-2.0
"""A home folder that can be written: paddle and PaddleNLP make folders of theirs in it when they are imported."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

from paddlemix.utils import env
from paddlemix.utils.logging import get_logger

_PADDLE = Path(".cache") / "paddle" / "dataset"
_PADDLENLP = Path(".paddlenlp")
_KEPT = {"PPMIX_HOME": ".paddlemix", "HF_HOME": ".cache/huggingface", "MODELSCOPE_CACHE": ".cache/modelscope/hub"}
"""Variables that name folders which may be read where they are."""


def make_usable() -> bool:
    """Give this process a temporary home folder when its own cannot be written; False when it can.

    Call it before paddle is imported. What lies in the old one is still read from there.
    """
    home = Path("~").expanduser()
    if _makes(home / _PADDLE) and _makes(home / _PADDLENLP):
        return False
    temporary = tempfile.mkdtemp(prefix="paddlemix-home-")
    atexit.register(_remove, temporary, os.getpid())
    for name, place in _KEPT.items():
        env.set_default(name, str(home / place))
    env.put("HOME", temporary)
    get_logger(__name__).warning(
        f"the home folder {home} cannot be written; what paddle keeps there goes to {temporary} and is removed at the "
        "end. Set HOME to a folder that can be written"
    )
    return True


def _makes(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)


def _remove(folder: str, process: int) -> None:
    if os.getpid() == process:  # a worker that was forked leaves it to its parent
        shutil.rmtree(folder, ignore_errors=True)
