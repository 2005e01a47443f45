# SPDX-License-Identifier: Apache-2.0
"""``.pdparams`` files are pickles that run code when Paddle loads them; this version refuses them."""

from pathlib import Path
from typing import NoReturn

from paddlemix.utils.errors import CheckpointError


def refuse(path: Path) -> NoReturn:
    """CheckpointError that says why and what to do instead."""
    raise CheckpointError(
        f"{path}: .pdparams files are not read yet (paddle.load would run any code inside); "
        "use the safetensors or .bin files of the same model"
    )
