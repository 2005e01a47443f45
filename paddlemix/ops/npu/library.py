# SPDX-License-Identifier: Apache-2.0
"""The operators of the NPU plug-in: are they there, and in which form? Asked without calling any of them.

The plug-in brings its fused operators in its own library. Their forms changed over time, and a call with too few
arguments ends the process instead of raising, so a form is read from the framework's table first and compared here.
What an operator refuses all the same (a limit that is not known here) becomes a ``RefusalError``.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import paddle
from paddle.base.framework import OpProtoHolder
from paddle.base.proto import framework_pb2
from paddle.utils.cpp_extension import extension_utils

from paddlemix.utils import env
from paddlemix.utils.errors import BackendError


class RefusalError(BackendError):
    """The operator was called and raised. The plain path may serve the call."""


@dataclass(frozen=True)
class Form:
    """Inputs and attributes (``name:kind``) of an operator, in the order of a call. ``name`` is ours.

    ``result`` is the output that holds the answer; where the operator has an output of that name it must be the first.
    """

    name: str
    inputs: tuple[str, ...]
    attributes: tuple[str, ...]
    result: str

    def __str__(self) -> str:
        return f"({', '.join(self.inputs)}; {', '.join(self.attributes)}) -> {self.result}"


_ATTENTION_INPUTS = ("query", "key", "value", "fixed_seed_offset", "attn_mask")
_ATTENTION_ATTRIBUTES = (
    *("dropout:float", "causal:bool", "return_softmax:bool", "is_test:bool"),
    "is_triangle_upper_mask:bool",
)
_LENGTHS = ("actual_seq_q_len", "actual_seq_kv_len")
_LENGTH_LISTS = tuple(f"{name}:list" for name in _LENGTHS)

KNOWN: dict[str, tuple[Form, ...]] = {
    "flash_attention_npu": (
        Form("5 inputs, 5 attributes", _ATTENTION_INPUTS, _ATTENTION_ATTRIBUTES, "attention_score"),
        # On the plug-in's development branch for six days in January 2025, and in no release.
        Form(
            "5 inputs, 8 attributes",
            _ATTENTION_INPUTS,
            (*_LENGTH_LISTS, *_ATTENTION_ATTRIBUTES, "is_varlen:bool"),
            "attention_score",
        ),
        # Since 2025-01-09 (commit 85f4d035 of the plug-in).
        Form(
            "7 inputs, 6 attributes",
            (*_ATTENTION_INPUTS, *_LENGTHS),
            (*_ATTENTION_ATTRIBUTES, "is_varlen:bool"),
            "attention_score",
        ),
    ),
    "rms_norm_npu": (Form("x, gamma, epsilon", ("x", "gamma"), ("epsilon:float",), "y"),),
    "fused_rope": (Form("query, cos, sin", ("query", "cos", "sin"), (), "query_out"),),
    "fused_mm_allreduce": (
        Form("x1, x2, bias", ("x1", "x2", "bias"), ("hcom:STRING", "reduce_op:STRING", "comm_turn:LONG"), "result"),
    ),
}
"""Forms that are called, by the operator's name in the plug-in."""


def form_of(operator: str) -> Form | str:
    """The known form that the loaded plug-in has of ``operator``, or a sentence why it must not be called."""
    found = _found(operator)
    if found is None:
        libraries = ", ".join(path.name for path in libraries_of_plugin()) or "none"
        return f"the operator {operator} is not registered (libraries of the plug-in: {libraries})"
    for form in KNOWN[operator]:
        if (form.inputs, form.attributes) == (found.inputs, found.attributes) and _answers_first(operator, form):
            return form
    known = "; ".join(form.name for form in KNOWN[operator])
    return f"the operator {operator} has the unknown form {found}; known: {known}; it is not called"


def has_gradient(operator: str) -> bool:
    """True when the plug-in brings the gradient of ``operator``. Without it paddle gives none, and no error either."""
    return _found(operator) is not None and paddle.base.core.has_non_empty_grad_op_maker(operator)


def why_not(operator: str) -> str | None:
    """Why ``operator`` must not be called in this plug-in, or None. With gradients on it has to bring its own.

    It is not traced into a graph: there paddle asks an operator for the shape of its answer, and ends the process where
    the plug-in has no rule for it, which nothing tells beforehand. Whether one tensor needs a gradient does not matter:
    the answer serves all layers of a step.
    """
    form = form_of(operator)
    if isinstance(form, str):
        return form
    if not paddle.in_dynamic_mode():
        return f"{operator} is not traced into a static graph"
    if paddle.is_grad_enabled() and not has_gradient(operator):
        return f"the plug-in has {operator} without its gradient"
    return None


def kernel_dtypes(kernel: str) -> frozenset[str]:
    """Dtypes in which the NPU plug-in registers the standard kernel ``kernel``; empty when it has none."""
    return _kernel_dtypes(kernel)


Argument: TypeAlias = paddle.Tensor | list[paddle.Tensor] | list[int] | list[float] | bool | int | float | str | None
"""An input or an attribute of an operator."""


def run_named(operator: str, **values: Argument) -> list[paddle.Tensor]:
    """``run`` with inputs and attributes by name, as far as the form of this plug-in has them.

    What it has and is not given is None: an optional tensor that is absent, or an empty list. Shapes and dtypes are
    those that the operator takes and gives.
    """
    form = form_of(operator)
    if isinstance(form, str):
        raise BackendError(form)
    return run(operator, *(values.get(name.partition(":")[0]) for name in (*form.inputs, *form.attributes)))


def run(operator: str, *arguments: Argument) -> list[paddle.Tensor]:
    """Call an operator whose form is known (its shapes and dtypes). All inputs, then all attributes, by position."""
    form = form_of(operator)
    if isinstance(form, str):
        raise BackendError(form)
    if len(arguments) != len(form.inputs) + len(form.attributes):
        # Paddle itself reads past the end of the arguments here and the process dies.
        raise BackendError(f"{operator}{form} was given {len(arguments)} arguments")
    return guarded(operator, lambda: paddle.base.core.eager._run_custom_op(operator, *arguments), arguments)


_RAISED = (RuntimeError, ValueError, TypeError, OSError, IndexError, SystemError)
"""What paddle makes of an error of an operator, but for MemoryError: the plain path takes no less memory."""

_refused: dict[tuple[Any, ...], str] = {}


def guarded(operator: str, call: Callable[[], Any], arguments: tuple[object, ...]) -> Any:
    """What ``call`` gives. RefusalError when the operator raises, and again for like ``arguments`` without a call."""
    # The key costs microseconds in each layer of a decode step: it is made only where something was refused.
    if _refused and (before := _refused.get((operator, *map(_likeness, arguments)))):
        raise RefusalError(before)
    try:
        return call()
    except _RAISED as error:
        if "ResourceExhausted" in str(error):  # as good as MemoryError, and not the same at the next call
            raise
        likeness = (operator, *map(_likeness, arguments))
        tensors = ", ".join(f"{one[0]} {one[1]}" for one in likeness if isinstance(one, tuple))
        text = _refused[likeness] = f"{operator} of this plug-in refused {tensors}: {message_of(error)}"
        raise RefusalError(text) from error


def message_of(error: BaseException) -> str:
    """The line that says what is wrong: the last one that is no place in paddle's sources."""
    lines = [line.strip() for line in str(error).splitlines()]
    told = [line for line in lines if line and not line.startswith(("[", "(at ", "---"))]
    return told[-1] if told else type(error).__name__


def _likeness(argument: Argument) -> Any:
    """What a limit can depend on: shape and dtype of a tensor, the text of anything else."""
    if isinstance(argument, paddle.Tensor):
        return tuple(argument.shape), str(argument.dtype).rpartition(".")[2]
    return repr(argument)


@functools.cache
def libraries_of_plugin() -> tuple[Path, ...]:
    """Library files of the device plug-ins that paddle loaded. Paddle fills CUSTOM_DEVICE_ROOT when it is unset."""
    root = env.raw("CUSTOM_DEVICE_ROOT")
    folder = Path(root) if root else None
    if folder is None or not folder.is_dir():
        return ()
    return tuple(sorted(path for path in folder.iterdir() if path.suffix == ".so"))


@functools.cache
def _found(operator: str) -> Form | None:
    found = _registered(operator)
    if found is None and "npu" in (paddle.device.get_all_custom_device_type() or []):
        for path in libraries_of_plugin():
            try:
                extension_utils.load_op_meta_info_and_register_op(str(path))
            except (RuntimeError, ValueError, OSError):
                continue  # a library without operators of its own
        found = _registered(operator)
    return found


def _registered(operator: str) -> Form | None:
    try:
        inputs, attributes, outputs = extension_utils.parse_op_info(operator)
    except ValueError:
        return None
    kinds = {one.name: _kind(one.type) for one in OpProtoHolder.instance().get_op_proto(operator).attrs}
    return Form(
        "found",
        tuple(name.partition("@")[0] for name in inputs),
        tuple(f"{name}:{kinds[name]}" for name in attributes),
        ",".join(name.partition("@")[0] for name in outputs),
    )


def _kind(number: int) -> str:
    """``float``, ``bool``, ``list`` (of whole numbers of either width), else paddle's own word."""
    word = framework_pb2.AttrType.Name(number)
    return {"FLOAT": "float", "FLOAT64": "float", "BOOLEAN": "bool", "INTS": "list", "LONGS": "list"}.get(word, word)


def _answers_first(operator: str, form: Form) -> bool:
    outputs = _found(operator).result.split(",")
    return form.result not in outputs[1:]


@functools.cache
def _kernel_dtypes(kernel: str) -> frozenset[str]:
    names = {"float": "float32", "::phi::dtype::float16": "float16", "::phi::dtype::bfloat16": "bfloat16"}
    rows = paddle.base.core._get_all_register_op_kernels("phi").get(kernel, [])
    kinds = (row.partition("data_type[")[2].partition("]")[0] for row in rows if "Place(npu" in row)
    return frozenset(names.get(kind, kind) for kind in kinds)
