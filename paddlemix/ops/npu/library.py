# SPDX-License-Identifier: Apache-2.0
"""The operators of the NPU plug-in: are they there, and in which form? Asked without calling any of them.

The plug-in brings its fused operators in its own library. Their forms changed over time, and a call with too few
arguments ends the process instead of raising, so a form is read from the framework's table first and compared here.
"""

import functools
from dataclasses import dataclass
from pathlib import Path

import paddle
from paddle.utils.cpp_extension import extension_utils

from paddlemix.utils import env
from paddlemix.utils.errors import BackendError


@dataclass(frozen=True)
class Form:
    """Inputs and attributes of an operator, in the order of a call. ``name`` is ours."""

    name: str
    inputs: tuple[str, ...]
    attributes: tuple[str, ...]

    def __str__(self) -> str:
        return f"({', '.join(self.inputs)}; {', '.join(self.attributes)})"


_ATTENTION_INPUTS = ("query", "key", "value", "fixed_seed_offset", "attn_mask")
_ATTENTION_OLD = ("dropout", "causal", "return_softmax", "is_test", "is_triangle_upper_mask")

KNOWN: dict[str, tuple[Form, ...]] = {
    "flash_attention_npu": (
        Form("10 arguments", _ATTENTION_INPUTS, _ATTENTION_OLD),
        Form(
            "13 arguments",
            _ATTENTION_INPUTS,
            ("actual_seq_q_len", "actual_seq_kv_len", *_ATTENTION_OLD, "is_varlen"),
        ),
    ),
    "rms_norm_npu": (Form("x, gamma, epsilon", ("x", "gamma"), ("epsilon",)),),
    "fused_rope": (Form("query, cos, sin", ("query", "cos", "sin"), ()),),
}
"""Forms that are called, by the operator's name in the plug-in."""


def form_of(operator: str) -> Form | str:
    """The known form that the loaded plug-in has of ``operator``, or a sentence why it must not be called."""
    found = _found(operator)
    if found is None:
        libraries = ", ".join(path.name for path in libraries_of_plugin()) or "none"
        return f"the operator {operator} is not registered (libraries of the plug-in: {libraries})"
    for form in KNOWN[operator]:
        if (form.inputs, form.attributes) == (found.inputs, found.attributes):
            return form
    known = " or ".join(str(form) for form in KNOWN[operator])
    return f"the operator {operator} has the unknown form {found}; known: {known}; it is not called"


def kernel_dtypes(kernel: str) -> frozenset[str]:
    """Dtypes in which the NPU plug-in registers the standard kernel ``kernel``; empty when it has none."""
    return _kernel_dtypes(kernel)


def run(operator: str, *arguments: object) -> list[paddle.Tensor]:
    """Call an operator whose form is known. All inputs, then all attributes, by position."""
    form = form_of(operator)
    if isinstance(form, str):
        raise BackendError(form)
    if len(arguments) != len(form.inputs) + len(form.attributes):
        # Paddle itself reads past the end of the arguments here and the process dies.
        raise BackendError(f"{operator}{form} was given {len(arguments)} arguments")
    return paddle.base.core.eager._run_custom_op(operator, *arguments)


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
        inputs, attributes, _ = extension_utils.parse_op_info(operator)
    except ValueError:
        return None
    return Form("found", tuple(name.partition("@")[0] for name in inputs), tuple(attributes))


@functools.cache
def _kernel_dtypes(kernel: str) -> frozenset[str]:
    names = {"float": "float32", "::phi::dtype::float16": "float16", "::phi::dtype::bfloat16": "bfloat16"}
    rows = paddle.base.core._get_all_register_op_kernels("phi").get(kernel, [])
    kinds = (row.partition("data_type[")[2].partition("]")[0] for row in rows if "Place(npu" in row)
    return frozenset(names.get(kind, kind) for kind in kinds)
