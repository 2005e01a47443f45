# SPDX-License-Identifier: Apache-2.0
"""The fused NPU operators of the loaded plug-in: their form, why one is not used, and whether each equals the math.

Each operator and its gradient run on the device and are compared with the plain path of ``ops`` in float32 on the same
device and the same rounded inputs. An operator that refuses a call is a note, for then the plain path serves.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import paddle
from paddle import Tensor

from paddlemix.doctor.findings import Finding, fail, note, ok, warn
from paddlemix.ops import activation, norm, rope
from paddlemix.ops.attention import math as plain_attention
from paddlemix.ops.attention import npu as fused_attention
from paddlemix.ops.attention.contract import Mask, make_request
from paddlemix.ops.attention.select import ATTENTION
from paddlemix.ops.dispatch import Operator, facts
from paddlemix.ops.npu import fused, library, mc2
from paddlemix.ops.operators import OPERATORS
from paddlemix.ops.runtime import FUSED, Choice, Runtime
from paddlemix.utils.errors import BackendError

ALLOWED = {"float32": 1e-4, "float16": 5e-3, "bfloat16": 3e-2}
"""Largest difference to float32 math, as a share of the largest value of the result or gradient that it is found in.

bfloat16 rounds by 0.004 of a value, float16 by 0.0005; a few roundings of several terms add up.
"""

Case = tuple[str, Callable[..., Tensor], Callable[..., Tensor], list[Tensor], str | None]
"""Name, fused, plain, inputs that get gradients, and why the fused one cannot serve them."""


def forms(on_npu: bool = False) -> list[Finding]:
    """One line for each operator: the form in the plug-in, and what the flags say. ``on_npu``: a missing one costs."""
    try:
        runtime = Runtime.current(FUSED)
    except BackendError as error:  # flags that contradict each other
        return [fail("flags", str(error))]
    # One that is off unless asked for is named when it is asked for.
    asked = [operator for operator in OPERATORS.values() if runtime.asks(operator.name)]
    return [_form(operator, runtime, on_npu) for operator in asked]


def _form(operator: Operator, runtime: Runtime, on_npu: bool) -> Finding:
    name, choice = operator.plugin, runtime.choice(operator.name)
    told = f"; {choice.by}" if choice.by and (choice.off or choice.forced) else ""
    if name not in library.KNOWN:  # a standard operator of paddle
        dtypes = sorted(library.kernel_dtypes(name))
        text, good = (
            f"kernel for {', '.join(dtypes)}" if dtypes else "the plug-in has no kernel of its own",
            bool(dtypes),
        )
        values: dict[str, Any] = {"dtypes": dtypes}
    else:
        form = library.form_of(name)
        known = not isinstance(form, str)
        good = known and (operator is mc2.MC2 or library.has_gradient(name))  # that gradient is ours
        text = f"form: {form.name}" if known else str(form)
        text += "; without its gradient: the plain path trains" if known and not good else ""
        values = {"form": form.name, "gradient": good} if known else {"form": None}
    if on_npu and (impossible := _impossible(operator, choice, good)):
        return fail(name, f"{text}{told}: {impossible}, so a training ends with an error; write auto", **values)
    if good:
        # Somebody has chosen the plain path: worth reading on a card, and no fault.
        plain = choice.off or choice.forced not in (None, FUSED)
        return (note if on_npu and plain else ok)(name, text + told, **values)
    return warn(name, f"{text}{told}; {operator.cost}", **values) if on_npu else note(name, text + told, **values)


def _impossible(operator: Operator, choice: Choice, good: bool) -> str | None:
    """Why no training on an npu can use the kernel that a flag forces; None when one can or nothing is forced."""
    if choice.forced == FUSED:
        return None if good else "the operator cannot be used"
    here = [one.name for one in operator.kernels if not one.devices or FUSED in one.devices]
    return None if choice.forced in (None, *here) else f"{choice.forced} is not for an npu"


def self_check(device: str, dtype: str) -> list[Finding]:
    """Run every fused operator that can serve against the math; a line each, FAIL where they differ."""
    found, told = [], {finding.text for finding in forms()}
    with paddle.no_grad():  # what serves a chat is compared too; ``forms`` tells of a missing gradient
        cases = _cases(dtype)
    for name, fast, plain, inputs, reason in cases:
        if reason is not None:
            # The reason names a form in full: one screen has room for it once.
            text = "not used, as said above" if reason in told else f"not used: {reason}"
            found.append(note(name, text, max_difference=None, reason=reason))
            told.add(reason)
            continue
        try:
            found.append(_compared(name, fast, plain, inputs, dtype))
        except (RuntimeError, ValueError, TypeError, NotImplementedError, OSError, BackendError) as error:
            found.append(fail(name, f"failed on {device}: {library.message_of(error)}", max_difference=None))
    return found


def _compared(
    name: str, fast: Callable[..., Tensor], plain: Callable[..., Tensor], inputs: list[Tensor], dtype: str
) -> Finding:
    try:
        difference = _difference(fast, plain, inputs)
    except library.RefusalError as refusal:
        _run(plain, [_leaf(value.astype("float32")) for value in inputs])  # raises where the device does nothing at all
        return warn(name, f"{refusal}; the plain path serves", max_difference=None, reason=str(refusal))
    good = difference <= ALLOWED[dtype]  # False for a NaN
    text = f"max difference to math {difference:.2e} in {dtype}" + ("" if good else f", allowed {ALLOWED[dtype]:g}")
    return (ok if good else fail)(name, text, max_difference=difference)


def _difference(fast: Callable[..., Tensor], plain: Callable[..., Tensor], inputs: list[Tensor]) -> float:
    """Largest difference of the result and of all gradients there are, each as a share of its largest value."""
    quick = _run(fast, [_leaf(value) for value in inputs])
    exact = _run(plain, [_leaf(value.astype("float32")) for value in inputs])
    # np.max and not max: a NaN must stay one.
    return float(np.max([np.max(np.abs(a - b)) / np.max(np.abs(b)) for a, b in zip(quick, exact, strict=False)]))


def _run(function: Callable[..., Tensor], leaves: list[Tensor]) -> list[np.ndarray]:
    out = function(*leaves)
    if out.stop_gradient:  # an operator without its gradient
        return [out.astype("float32").numpy()]
    (out.astype("float32") * _weights(out.shape)).sum().backward()
    return [value.astype("float32").numpy() for value in (out.detach(), *(leaf.grad for leaf in leaves))]


def _leaf(value: Tensor) -> Tensor:
    leaf = value.detach().clone()
    leaf.stop_gradient = False
    return leaf


def _weights(shape: list[int]) -> Tensor:
    """What the result is summed with: not constant, so that every gradient counts."""
    return _draw(shape, "float32", seed=7) / float(np.sqrt(shape[-1]))


def _draw(shape: list[int], dtype: str, seed: int) -> Tensor:
    return paddle.to_tensor(np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)).astype(dtype)


def _cases(dtype: str) -> list[Case]:
    lengths = paddle.to_tensor([48, 64], dtype="int64")
    starts = paddle.to_tensor([16, 0], dtype="int64")
    return [
        _attention("attention, causal", dtype, Mask(causal=True), (2, 64, 64), (8, 2), 128),
        _attention("attention, padded", dtype, Mask(causal=True, key_lengths=lengths), (2, 64, 64), (4, 4), 128),
        _attention("attention, left pad", dtype, Mask(causal=True, key_starts=starts), (2, 64, 64), (4, 4), 64),
        _attention("attention, image", dtype, Mask(causal=False), (2, 145, 145), (4, 4), 64),
        _attention("attention, one token", dtype, Mask(causal=True, offset=63), (2, 1, 64), (4, 2), 128),
        _norm(dtype),
        _rope(dtype),
        _swiglu(dtype),
    ]


def _attention(
    name: str, dtype: str, mask: Mask, sizes: tuple[int, int, int], heads: tuple[int, int], width: int
) -> Case:
    batch, q_len, k_len = sizes
    q = _draw([batch, q_len, heads[0], width], dtype, 1)
    k, v = (_draw([batch, k_len, heads[1], width], dtype, seed) for seed in (2, 3))
    options: dict[str, Any] = {"scale": width**-0.5}
    reason = ATTENTION.why_not(FUSED, Runtime.current(), make_request(q, k, v, mask))
    return (
        name,
        lambda *tensors: fused_attention.attend(*tensors, mask, **options),
        lambda *tensors: plain_attention.attend(*tensors, mask, **options),
        [q, k, v],
        reason,
    )


def _reason(operator: Operator, *tensors: Tensor) -> str | None:
    """Why the fused kernel of ``operator`` cannot serve these tensors; None when it can."""
    return operator.why_not(FUSED, Runtime.current(), facts(*tensors))


def _norm(dtype: str) -> Case:
    x, weight = _draw([64, 4096], dtype, 4), _draw([4096], dtype, 5)

    def plain(x: Tensor, weight: Tensor) -> Tensor:
        return x * paddle.rsqrt((x * x).mean(axis=-1, keepdim=True) + 1e-5) * weight

    return "rms norm", lambda *t: fused.rms_norm(*t, 1e-5), plain, [x, weight], _reason(norm.RMS_NORM, x, weight)


def _rope(dtype: str) -> Case:
    x = _draw([2, 64, 4, 128], dtype, 6)
    positions = paddle.to_tensor(np.stack([np.arange(64), np.arange(64) + 100]))
    runtime = Runtime.current()
    cos, sin = rope.RotaryTables(128, 10000.0, None, runtime).at(positions)
    tables = fused.rope_tables(cos, sin, dtype)
    return (
        "rotary",
        lambda x: fused.rope(x, *tables),
        lambda x: rope.rotate(x, (cos, sin), runtime),
        [x],
        _reason(rope.ROPE, x),
    )


def _swiglu(dtype: str) -> Case:
    x = _draw([64, 2048], dtype, 8)

    def plain(x: Tensor) -> Tensor:
        gate, up = paddle.split(x, 2, axis=-1)
        return activation.silu(gate) * up

    return "swiglu", fused.swiglu, plain, [x], _reason(activation.SWIGLU, x)
