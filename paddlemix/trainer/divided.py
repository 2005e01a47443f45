# SPDX-License-Identifier: Apache-2.0
"""Parameters of which each process holds a slice: read, written and saved as the whole ones they are.

Two things divide parameters: tensor parallel (``ops/parallel.py``) and sharding stage3. Stage3 keeps a parameter as a
flat buffer, padded to a multiple of the processes and cut evenly; paddle hangs this process's piece at the parameter
as ``fw_storage`` and takes the memory of the parameter itself away between its uses.
"""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import paddle
from paddle import Tensor, nn
from paddle.distributed.communication.group import Group

from paddlemix.checkpoint.save import ReadValues, plain_values
from paddlemix.ops import parallel
from paddlemix.utils.errors import ConfigError

if TYPE_CHECKING:
    from paddlemix.models.llava import LlavaForCausalLM

_DONE = -1


def check_sharding(model: "LlavaForCausalLM", sharding: str) -> None:
    """ConfigError when stage3 cannot serve the model: it has a parameter at hand only while its own layer runs."""
    if "stage3" in sharding and model.config.text.tie_word_embeddings:
        raise ConfigError(
            f'"sharding" is "{sharding}", but the output head of this model is its token embedding '
            '(tie_word_embeddings), which stage3 cannot divide; write "sharding": "stage2"'
        )


def note_slices(parameters: Iterable[Tensor], group: Group) -> None:
    """Note at each parameter (any shape, dtype) that stage3 has cut in which group its pieces lie."""
    for parameter in parameters:
        if getattr(parameter, "fw_storage", None) is not None:
            parameter.slice_group = group


def sliced(parameter: Tensor) -> bool:
    """Whether stage3 has cut this parameter (any shape, dtype)."""
    return getattr(parameter, "slice_group", None) is not None


def is_divided(parameter: Tensor) -> bool:
    """Whether this process holds a slice only of the parameter (any shape, dtype)."""
    return sliced(parameter) or parallel.part_of(parameter) is not None


@paddle.no_grad()
def whole(parameter: Tensor) -> Tensor:
    """The values of the whole shape, in the parameter's dtype, bit for bit.

    Every process must call it, for the same parameters in one order.
    """
    if not sliced(parameter):
        return parallel.whole(parameter)
    pieces: list[Tensor] = []
    paddle.distributed.all_gather(pieces, parameter.fw_storage.detach(), group=parameter.slice_group)
    return paddle.concat(pieces)[: math.prod(parameter.shape)].reshape(parameter.shape)


@paddle.no_grad()
def put(parameter: Tensor, values: Tensor) -> None:
    """Set this process's part from the whole ``values`` (the parameter's whole shape and dtype)."""
    if not sliced(parameter):
        parameter.set_value(parallel.cut(parameter, values))
        return
    length = parameter.fw_storage.shape[0]
    first = parameter.slice_group.rank * length
    piece = values.reshape([-1])[first : first + length]
    if piece.shape[0] < length:
        padding = paddle.zeros([length - piece.shape[0]], dtype=piece.dtype)
        piece = paddle.concat([piece, padding]) if piece.shape[0] else padding
    parameter.fw_storage.set_value(piece)


def write_whole(model: nn.Layer, write: Callable[[ReadValues], None] | None) -> None:
    """Let the first process ``write`` with a reader of whole values; the others, without ``write``, send their parts.

    The first process says which parameter it reads, so it may read in any order; it also says when it is done or has
    failed, so nobody waits for ever. Without divided parameters nothing is exchanged.
    """
    parameters = list(model.parameters())
    if not any(map(is_divided, parameters)):
        if write is not None:
            write(plain_values)
    elif write is not None:
        with _reading(parameters) as read:
            write(read)
    else:
        while (index := _receive()) != _DONE:
            whole(parameters[index])


@contextlib.contextmanager
def _reading(parameters: list[Tensor]) -> Iterator[ReadValues]:
    places = {id(parameter): index for index, parameter in enumerate(parameters)}

    def read(parameter: Tensor) -> np.ndarray:
        if is_divided(parameter):
            _send(places[id(parameter)])
        return plain_values(whole(parameter))

    try:
        yield read
    finally:
        _send(_DONE)


def _send(number: int) -> None:
    paddle.distributed.broadcast(paddle.to_tensor([number], dtype="int32"), src=0)


def _receive() -> int:
    number = paddle.zeros([1], dtype="int32")
    paddle.distributed.broadcast(number, src=0)
    return int(number)


SLICE = "slice@"
"""Paddle's prefix to the names of pieces in the optimizer."""


def state_key(parameter: Tensor) -> str:
    """The name under which the optimizer keeps the state of a parameter (any shape, dtype)."""
    return SLICE + parameter.name if sliced(parameter) else parameter.name


def state_form(parameter: Tensor) -> Tensor:
    """A parameter of the shape and the name that the optimizer's state has."""
    if not sliced(parameter):
        return parameter
    piece = parameter.fw_storage
    form = paddle.base.framework.EagerParamBase(shape=piece.shape, dtype=piece.dtype, name=state_key(parameter))
    form.stop_gradient = parameter.stop_gradient
    return form
