# SPDX-License-Identifier: Apache-2.0
"""The loss scale of fp16 training: what of it a checkpoint keeps."""

from typing import Any

import numpy as np
from paddle.amp import GradScaler


def numbers(scaler: GradScaler) -> dict[str, Any]:
    """The state of a scaler as plain JSON, exactly: its scale and how many steps in a row were good or bad."""
    return {name: np.asarray(value).tolist() for name, value in scaler.state_dict().items()}


def restore(scaler: GradScaler, found: dict[str, Any]) -> None:
    """Inverse of ``numbers``."""
    like = scaler.state_dict()
    scaler.load_state_dict({name: np.asarray(value, np.asarray(like[name]).dtype) for name, value in found.items()})
