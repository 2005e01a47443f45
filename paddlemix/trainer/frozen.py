# SPDX-License-Identifier: Apache-2.0
"""The weights that a run does not train, recognised by a few of their values, so that a resumed run meets the same."""

from collections.abc import Collection
from pathlib import Path

import numpy as np
from paddle import Tensor, nn

from paddlemix.checkpoint.formats.base import to_float32
from paddlemix.checkpoint.save import dtype_name
from paddlemix.ops.parallel import part_of
from paddlemix.utils.errors import CheckpointError

_TENSORS = 16
_VALUES = 16


def frozen_sample(model: nn.Layer, trained: Collection[str]) -> dict[str, list[float]]:
    """A few values of some 16 parameters that do not train, by parameter name.

    A checkpoint holds what trains; the rest comes from the model folder again, which may have changed meanwhile.
    Parameters that are divided over devices are left out: each process holds other values of them.
    """
    frozen = {
        name: parameter
        for name, parameter in sorted(model.named_parameters())
        # Matrices only: norms and biases of different models may agree.
        if name not in trained and part_of(parameter) is None and len(parameter.shape) > 1
    }
    chosen = list(frozen)[:: max(1, len(frozen) // _TENSORS)]
    return {name: _values(frozen[name]) for name in chosen}


def _values(parameter: Tensor) -> list[float]:
    flat = np.asarray(parameter.numpy()).reshape(-1)
    places = [(7919 * k + 5) % flat.size for k in range(min(_VALUES, flat.size))]
    return [float(value) for value in to_float32(flat[places], dtype_name(parameter))]


def require_same_frozen(before: dict[str, list[float]], now: dict[str, list[float]], folder: Path, model: str) -> None:
    """CheckpointError when a parameter that the run does not train has other values than at its start.

    ``before`` is empty in checkpoints of earlier versions, which cannot be checked.
    """
    other = sorted(name for name in before if name in now and before[name] != now[name])
    if other:
        raise CheckpointError(
            f"{folder}: {len(other)} of {len(before)} sampled parameters that this run does not train have other "
            f'values now ({other[0]}, ...): "model_name_or_path" {model} was changed, or its tower or projector. '
            "Restore it, or start a new run in another output_dir"
        )
