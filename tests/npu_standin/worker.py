# SPDX-License-Identifier: Apache-2.0
"""What runs on the stand-in device: ``python -m tests.npu_standin.worker CASE`` prints a RESULT line.

Each case computes on the CPU and on the stand-in and reports the largest differences and the counted calls.
"""

import ctypes
import dataclasses
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from paddlemix.generation.engine import generate_batch
from paddlemix.generation.sampling import Decoding
from paddlemix.models.llava import LlavaForCausalLM, init_weights
from paddlemix.ops.attention import math as law
from paddlemix.ops.attention.contract import Mask, make_request
from paddlemix.ops.attention.select import ATTENTION, attend
from paddlemix.ops.linear import add_lora
from paddlemix.ops.norm import RMS_NORM, rms_norm
from paddlemix.ops.npu import library
from paddlemix.ops.rope import RotaryTables, rotate
from paddlemix.ops.runtime import Runtime
from paddlemix.settings.model import LlavaConfig, TextConfig, VisionConfig
from paddlemix.splice.plan import PlanRow, build_plan, label_places
from paddlemix.utils.errors import BackendError
from tests.tiny import tiny_config

LAYERS, TOWER_LAYERS = 2, 2
"""Decoder layers, and layers of the tower that are run (select layer -2 of three)."""

OPERATORS = (
    "flash_attention_npu",
    "flash_attention_npu_grad",
    "flash_attention_npu:plain",
    "flash_attention_npu:mask",
    "flash_attention_npu:causal",
    "flash_attention_npu:triangle",
    "rms_norm_npu",
    "rms_norm_npu_grad",
    "fused_rope",
    "fused_rope_grad",
    "swiglu",
    "swiglu_grad",
)


def config() -> LlavaConfig:
    """A LLaVA whose sizes the fused operators take: heads of 64 in the decoder and of 16 in the tower."""
    text = TextConfig(
        vocab_size=96,
        hidden_size=128,
        intermediate_size=64,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
    )
    vision = VisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=TOWER_LAYERS + 1,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
    )
    return dataclasses.replace(tiny_config(), text=text, vision=vision)


def model(dtype: str = "float32") -> LlavaForCausalLM:
    """The model on the current device; the same values on every device."""
    made = LlavaForCausalLM(config())
    init_weights(made, 0, dtype)
    return made


class Calls:
    """The counters of the stand-in."""

    def __init__(self) -> None:
        self.library = ctypes.CDLL(str(Path(os.environ["CUSTOM_DEVICE_ROOT"]) / "libpaddle-custom-npu.so"))
        self.library.npu_standin_calls.restype = ctypes.c_long

    def reset(self) -> None:
        self.library.npu_standin_reset()

    def read(self) -> dict[str, int]:
        counts = {name: self.library.npu_standin_calls(name.encode()) for name in OPERATORS}
        return {name: count for name, count in counts.items() if count}


def batch(kind: str) -> dict[str, np.ndarray]:
    """Arguments of ``forward``: two rows with an image each, of unequal length and padded, or packed."""
    from paddlemix.imaging.layout import Layout

    rng = np.random.default_rng(3)
    layout = Layout(1, np.arange(4, dtype=np.int64))

    def row(before: int, after: int, segments: list[int] | None = None) -> PlanRow:
        ids = [1, *rng.integers(3, 90, before).tolist(), -200, *rng.integers(3, 90, after).tolist()]
        labels = [-100] * (before + 2) + ids[before + 2 :]
        return PlanRow(ids, [layout], labels, segments)

    if kind == "packed":
        rows = [row(3, 14, [1] * 9 + [2] * 10), row(2, 6, [1] * 4 + [2] * 6)]
    else:
        rows = [row(3, 9), row(2, 4)]
    side = "left" if kind == "left" else "right"
    plan = build_plan(rows, tokens_per_tile=4, padding_side=side, pad_to_multiple_of=8)
    out = {
        "token_ids": plan.token_ids,
        "source": plan.source,
        "positions": plan.positions,
        "labels": plan.labels,
        "pixels": rng.standard_normal([2, 3, 28, 28]).astype(np.float32),
    }
    if kind == "packed":
        out["segments"] = plan.segments
    if kind == "left":
        out["starts"] = plan.starts
    return out


def train(device: str, kind: str, *, lora: bool = False, dtype: str = "float32", steps: int = 2) -> dict[str, Any]:
    """Losses, gradients of the first step and parameters after ``steps`` of AdamW, as numpy."""
    paddle.set_device(device)
    made = model(dtype)
    if lora:
        add_lora(made, [r"llama\.layers\..*(q_proj|v_proj|gate_proj)"], r=4, alpha=8)
        for name, parameter in made.named_parameters():
            parameter.stop_gradient = "lora_" not in name
            if "lora_B" in name:  # zeros would hide the adapter
                parameter.set_value(paddle.full_like(parameter, 0.02))
    made.train()
    trained = [parameter for parameter in made.parameters() if not parameter.stop_gradient]
    # AdamW divides a gradient by its size: with a tiny epsilon rounding noise near zero would move a parameter by the
    # rate, and two devices apart. Noise is 2e-7 here.
    optimizer = paddle.optimizer.AdamW(1e-4, epsilon=1e-5, parameters=trained, multi_precision=dtype != "float32")
    arguments = {key: paddle.to_tensor(value) for key, value in batch(kind).items()}
    arguments["pixels"] = arguments["pixels"].astype(dtype)
    if device != "cpu":  # held against the whole table of logits
        made.fuse_head_and_loss(8)
        given = (arguments[name].numpy() for name in ("segments", "starts") if name in arguments)
        places = label_places(arguments["labels"].numpy(), *given) if kind != "left" else None
        arguments["label_places"] = None if places is None else paddle.to_tensor(places)
    before = {name: item.astype("float32").numpy() for name, item in made.named_parameters()}
    losses, gradients = [], {}
    for step in range(steps):
        loss = made(**arguments)
        loss.backward()
        losses.append(float(loss))
        if step == 0:
            named = [(name, item.grad) for name, item in made.named_parameters() if item.grad is not None]
            gradients = {name: grad.astype("float32").numpy() for name, grad in named}
            dtypes = {str(grad.dtype).rpartition(".")[2] for _, grad in named}
        optimizer.step()
        optimizer.clear_grad()
    after = {name: item.astype("float32").numpy() for name, item in made.named_parameters() if not item.stop_gradient}
    moved = largest(after, {name: before[name] for name in after})
    return {"losses": losses, "gradients": gradients, "after": after, "grad_dtypes": sorted(dtypes), "moved": moved}


def largest(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> float:
    """Largest absolute difference; the names must be the same."""
    if ours.keys() != theirs.keys():
        raise SystemExit(f"different names: {sorted(ours.keys() ^ theirs.keys())}")
    return max(float(np.abs(ours[name] - theirs[name]).max()) for name in ours)


def compared(kind: str, *, lora: bool = False, dtype: str = "float32") -> dict[str, Any]:
    """One training on the CPU in float32 and one on the stand-in in ``dtype``."""
    theirs = train("cpu", kind, lora=lora)
    calls = Calls()
    calls.reset()
    ours = train("npu", kind, lora=lora, dtype=dtype)
    return {
        "losses": [ours["losses"], theirs["losses"]],
        "loss": max(abs(a - b) for a, b in zip(ours["losses"], theirs["losses"], strict=True)),
        "gradients": largest(ours["gradients"], theirs["gradients"]),
        "gradient_size": max(float(np.abs(grad).max()) for grad in theirs["gradients"].values()),
        "after": largest(ours["after"], theirs["after"]),
        "moved": theirs["moved"],
        "parameters": len(ours["after"]),
        "grad_dtypes": ours["grad_dtypes"],
        "calls": calls.read(),
    }


def generated(device: str, kind: str, dtype: str = "float32") -> tuple[list[list[int]], np.ndarray]:
    """Greedy ids of two rows (equal lengths, or left padded), and the scores of the first step."""
    from paddlemix.imaging.layout import Layout

    paddle.set_device(device)
    made = model(dtype).prepare_inference()
    layout = Layout(1, np.arange(4, dtype=np.int64))
    first = [1, 7, -200, 30, 31, 32]
    rows = [PlanRow(first, [layout]), PlanRow(first[:4] if kind == "left" else [1, 9, -200, 8, 7, 6], [layout])]
    plan = build_plan(rows, tokens_per_tile=4, padding_side="left")
    pixels = np.random.default_rng(5).standard_normal([2, 3, 28, 28]).astype(np.float32)
    ids = generate_batch(made, plan, pixels, Decoding(max_new_tokens=6, eos_ids=frozenset()))
    with paddle.no_grad():
        arguments = {"token_ids": plan.token_ids, "source": plan.source, "positions": plan.positions, "pixels": pixels}
        if kind == "left":
            arguments["starts"] = plan.starts
        logits = made(**{key: paddle.to_tensor(value) for key, value in arguments.items()})
    return ids, logits[:, -1].astype("float32").numpy()


def compared_generation(kind: str, dtype: str = "float32") -> dict[str, Any]:
    """Ids on both devices, and the counted calls of the whole generation."""
    theirs, their_scores = generated("cpu", kind)
    calls = Calls()
    calls.reset()
    ours, our_scores = generated("npu", kind, dtype)
    scores = float(np.abs(our_scores - their_scores).max())
    return {"ids": [ours, theirs], "scores": scores, "calls": calls.read()}


def case_equal() -> dict[str, Any]:
    """Everything in float32: full and LoRA training, packed and left-padded batches, generation."""
    return {
        "full": compared("right"),
        "lora": compared("right", lora=True),
        "packed": compared("packed"),
        "left": compared("left"),
        "generate": compared_generation("equal"),
        "generate_left": compared_generation("left"),
    }


def case_half() -> dict[str, Any]:
    """The same in bfloat16, with the operators' own dtype rule in force."""
    return {
        "full": compared("right", dtype="bfloat16"),
        "lora": compared("packed", lora=True, dtype="bfloat16"),
        "generate": compared_generation("left", dtype="bfloat16"),
    }


def case_operators() -> dict[str, Any]:
    """Each fused operator against its plain twin, value and gradient, in many forms."""
    paddle.set_device("npu")
    found: dict[str, float] = {}
    rng = np.random.default_rng(0)

    def tensor(*shape: int) -> paddle.Tensor:
        made = paddle.to_tensor(rng.standard_normal(shape).astype(np.float32))
        made.stop_gradient = False
        return made

    def hold(name: str, ours: Callable[..., paddle.Tensor], plain: Callable[..., paddle.Tensor], *given: Any) -> None:
        weight, seen = None, []
        for run in (ours, plain):
            for item in given:
                item.clear_gradient(False)
            out = run(*given)
            weight = paddle.to_tensor(rng.standard_normal(out.shape).astype(np.float32)) if weight is None else weight
            (out * weight).sum().backward()
            seen.append([out.numpy(), *(item.grad.numpy().copy() for item in given)])
        found[name] = max(float(np.abs(a - b).max()) for a, b in zip(*seen, strict=True))

    two, runtime = paddle.to_tensor([4, 9]), Runtime.current()
    masks = {
        "causal": lambda: Mask(True),
        "all": lambda: Mask(False),
        "starts": lambda: Mask(True, key_starts=two),
        "lengths": lambda: Mask(False, key_lengths=two),
        "segments": lambda: Mask(True, segments=paddle.to_tensor([[1] * 5 + [2] * 6 + [0], [1] * 12])),
    }
    for name, mask in masks.items():
        for kv_heads in (4, 2, 1):
            hold(
                f"attention {name}, {kv_heads} key heads",
                lambda q, k, v, mask=mask: attend(q, k, v, mask(), scale=0.25, runtime=runtime),
                lambda q, k, v, mask=mask: law.attend(q, k, v, mask(), scale=0.25),
                tensor(2, 12, 4, 16),
                tensor(2, 12, kv_heads, 16),
                tensor(2, 12, kv_heads, 16),
            )
    for name, q_len, offset, k_len in (("tail", 5, 0, 12), ("behind a cache", 4, 3, 12), ("one of a block", 1, 6, 12)):
        hold(
            f"attention {name}",
            lambda q, k, v, offset=offset: attend(q, k, v, Mask(True, offset=offset), scale=0.3, runtime=runtime),
            lambda q, k, v, offset=offset: law.attend(q, k, v, Mask(True, offset=offset), scale=0.3),
            tensor(2, q_len, 4, 16),
            tensor(2, k_len, 2, 16),
            tensor(2, k_len, 2, 16),
        )
    from paddlemix.ops.npu import fused

    hold("rms_norm", lambda x, w: RMS_NORM(runtime, x, w, 1e-5), lambda x, w: rms_norm(x, w, 1e-5),
         tensor(2, 7, 32), tensor(32))  # fmt: skip
    positions = paddle.to_tensor(rng.integers(0, 50, [3, 7]))
    tables = RotaryTables(64, 10000.0, None, runtime)
    plain_tables = tables.at(positions)
    hold("rope, own positions in each row", tables.step(positions).turn, lambda x: rotate(x, plain_tables, runtime),
         tensor(3, 7, 2, 64))  # fmt: skip
    silu = paddle.nn.functional.silu
    hold("swiglu", fused.swiglu, lambda a, b: silu(a) * b, tensor(2, 5, 8), tensor(2, 5, 8))
    hold("swiglu of one tensor", fused.swiglu, lambda a: silu(a[..., :8]) * a[..., 8:], tensor(2, 5, 16))
    return {"differences": found, "calls": Calls().read()}


def case_switches() -> dict[str, Any]:
    """What forced, forbidden and impossible settings do. Values: calls counted, or the text of the error."""
    paddle.set_device("npu")
    calls = Calls()
    q = paddle.rand([1, 4, 2, 16]).astype("bfloat16")
    odd = paddle.rand([1, 4, 2, 24]).astype("bfloat16")
    x, weight = paddle.rand([2, 32]), paddle.ones([32])

    def attention(of: paddle.Tensor, **more: Any) -> Callable[[], Any]:
        return lambda: attend(of, of, of, Mask(True), scale=0.25, runtime=Runtime.current(), **more)

    def on_cpu() -> Any:
        given = [q.cpu().astype("float32")] * 3
        return attend(*given, Mask(True), scale=1.0, runtime=Runtime.current("cpu"))

    def norm(of: paddle.Tensor, by: paddle.Tensor, device: str | None = None) -> Callable[[], Any]:
        return lambda: RMS_NORM(Runtime.current(device), of, by, 1e-5)

    def turned() -> Any:
        tables = RotaryTables(32, 10000.0, None, Runtime.current())
        return tables.step(paddle.to_tensor([[0, 1, 2, 3]])).turn(paddle.rand([1, 4, 2, 32]))

    attempts: dict[str, tuple[dict[str, str], Callable[[], Any]]] = {
        "auto": ({}, attention(q)),
        "whole off": ({"PADDLEMIX_NPU_FUSED": "0"}, attention(q)),
        "one off": ({"PADDLEMIX_NPU_FUSED": "1", "PADDLEMIX_NPU_FUSED_ATTENTION": "0"}, attention(q)),
        "one on": ({"PADDLEMIX_NPU_FUSED": "0", "PADDLEMIX_NPU_FUSED_ATTENTION": "1"}, attention(q)),
        "by backend": ({"PADDLEMIX_ATTENTION": "npu"}, attention(q)),
        "math by backend": ({"PADDLEMIX_ATTENTION": "math"}, attention(q)),
        "auto float32": ({}, attention(q.astype("float32"))),
        "forced float32": ({"PADDLEMIX_NPU_FUSED": "1"}, attention(q.astype("float32"))),
        "forced head": ({"PADDLEMIX_NPU_FUSED_ATTENTION": "1"}, attention(odd)),
        "forced dropout": ({"PADDLEMIX_NPU_FUSED_ATTENTION": "1"}, attention(q, dropout=0.1)),
        "forced cpu": ({"PADDLEMIX_NPU_FUSED": "1"}, on_cpu),
        "contradiction": ({"PADDLEMIX_NPU_FUSED": "0", "PADDLEMIX_ATTENTION": "npu"}, attention(q)),
        "contradiction too": ({"PADDLEMIX_NPU_FUSED": "1", "PADDLEMIX_ATTENTION": "math"}, attention(q)),
        "garbage": ({"PADDLEMIX_NPU_FUSED": "yes"}, attention(q)),
        "norm": ({}, norm(x, weight)),
        "norm off": ({"PADDLEMIX_NPU_FUSED_RMS_NORM": "0"}, norm(x, weight)),
        "norm forced": ({"PADDLEMIX_NPU_FUSED_RMS_NORM": "1"}, norm(x.astype("bfloat16"), weight)),
        "norm forced cpu": ({"PADDLEMIX_NPU_FUSED": "1"}, norm(x.cpu(), weight.cpu(), "cpu")),
        "rope": ({}, turned),
        "rope forced": ({"PADDLEMIX_NPU_FUSED_ROPE": "1"}, turned),
    }
    found: dict[str, Any] = {}
    for name, (flags, run) in attempts.items():
        calls.reset()
        os.environ.update(flags)
        try:
            run()
            found[name] = calls.read()
        except Exception as error:  # noqa: BLE001 the test reads what was raised
            found[name] = f"{type(error).__name__}: {error}"
        finally:
            for flag in flags:
                del os.environ[flag]
    return found


def case_unknown() -> dict[str, Any]:
    """A plug-in whose attention has a form that nobody knows (or none at all)."""
    paddle.set_device("npu")
    q = paddle.rand([1, 4, 2, 16]).astype("bfloat16")
    calls = Calls()
    runtime = Runtime.current()
    out = attend(q, q, q, Mask(True), scale=0.25, runtime=runtime)
    wanted = law.attend(q, q, q, Mask(True), scale=0.25)
    request = make_request(q, q, q, Mask(True))
    os.environ["PADDLEMIX_NPU_FUSED_ATTENTION"] = "1"
    try:
        attend(q, q, q, Mask(True), scale=0.25, runtime=Runtime.current())
        forced = "no error"
    except BackendError as error:
        forced = str(error)
    try:
        library.run("flash_attention_npu", q, q, q)
        called = "no error"
    except BackendError as error:
        called = str(error)
    return {
        "difference": float((out - wanted).astype("float32").abs().max()),
        "why_not": ATTENTION.why_not("npu", runtime, request),
        "forced": forced,
        "called": called,
        "calls": calls.read(),
    }


def case_traps() -> dict[str, Any]:
    """The stand-in itself refuses what a card refuses: these calls go past our rules on purpose."""
    paddle.set_device("npu")
    q = paddle.rand([1, 4, 2, 16]).astype("bfloat16")
    keys = paddle.rand([1, 6, 2, 16]).astype("bfloat16")
    hidden = paddle.triu(paddle.ones([4, 4]), 1).astype("bool")

    cross_entropy = paddle.nn.functional.cross_entropy

    def call(q: Any, k: Any, mask: Any, dropout: float = 0.0, causal: bool = False, triangle: bool = False) -> Any:
        flags = {"return_softmax": False, "is_test": True, "is_triangle_upper_mask": triangle, "is_varlen": False}
        given = {"query": q, "key": k, "value": k, "attn_mask": mask, "dropout": dropout, "causal": causal, **flags}
        return library.run_named("flash_attention_npu", **given)[0]

    attempts = {
        "float32": lambda: call(q.astype("float32"), q.astype("float32"), None),
        "mask dtype": lambda: call(q, q, hidden.astype("float32")),
        "mask broadcast": lambda: call(q, q, hidden[:1].reshape([1, 1, 1, 4])),
        "blind row": lambda: call(q, q, paddle.ones([4, 4]).astype("bool")),
        "causal": lambda: call(q, keys, None, causal=True),
        "dropout": lambda: call(q, q, None, dropout=0.1),
        "head": lambda: call(*[paddle.rand([1, 4, 2, 24]).astype("bfloat16")] * 2, None),
        "too few arguments": lambda: library.run("flash_attention_npu", q, q, q),
        "negative label": lambda: cross_entropy(paddle.rand([4, 8]), paddle.to_tensor([1, -100, 2, 3])),
        "logits of three axes": lambda: cross_entropy(paddle.rand([2, 2, 8]), paddle.to_tensor([[1, 2], [2, 3]])),
    }
    found: dict[str, Any] = {}
    for name, run in attempts.items():
        try:
            run()
            found[name] = "no error"
        except Exception as error:  # noqa: BLE001 the test reads what was raised
            found[name] = str(error)
    # The triangle hint on a decode step cuts off every key but the first.
    one, no_key_hidden = q[:, :1], paddle.zeros([1, 1, 1, 6]).astype("bool")
    wrong = call(one, keys, no_key_hidden, triangle=True) - call(one, keys, no_key_hidden)
    found["triangle on a decode step"] = float(wrong.astype("float32").abs().max())
    return found


def case_record() -> dict[str, Any]:
    """A training step and a decode step in bfloat16 with paddle's own log of kernels on, between marks in the log."""

    def mark(name: str) -> None:
        print(f"PHASE {name}", file=sys.stderr, flush=True)

    paddle.set_device("npu")
    made = model("bfloat16")
    made.train()
    optimizer = paddle.optimizer.AdamW(1e-4, parameters=made.parameters(), multi_precision=True)
    for kind in ("right", "packed", "left"):
        arguments = {key: paddle.to_tensor(value) for key, value in batch(kind).items()}
        arguments["pixels"] = arguments["pixels"].astype("bfloat16")
        mark(f"train {kind}")
        made(**arguments).backward()
        optimizer.step()
        optimizer.clear_grad()
        mark("end")
    made.prepare_inference()
    ids = paddle.to_tensor(np.full([2, 5], 7))
    cache = made.new_cache(2)
    places = paddle.to_tensor(np.tile(np.arange(5), (2, 1)))
    source = paddle.to_tensor(np.arange(10).reshape(2, 5))
    with paddle.no_grad():
        mark("prefill")
        made.decode(made.embed(ids, source, None), places, Mask(causal=True), cache)
        for starts in (None, paddle.to_tensor([0, 2])):
            mark("decode")
            rows = made.embed(ids[:, :1], paddle.to_tensor([[0], [1]]), None)
            mask = Mask(causal=True, key_starts=starts, offset=cache.length)
            made.logits(made.decode(rows, places[:, :1] + cache.length, mask, cache)[:, -1]).argmax(axis=-1)
            mark("end")
    return {}


if __name__ == "__main__":
    result = globals()[f"case_{sys.argv[1]}"]()
    print("RESULT " + json.dumps(result))
