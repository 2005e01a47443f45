# SPDX-License-Identifier: Apache-2.0
"""What the cards of a run send each other for an update, counted on two stand-in devices.

    python tools/npu_traffic.py          the table of docs/npu-speed.md

A tiny bfloat16 model trains with master gradients under each kind of sharding, with one portion of rows for an update
and with three, and in tensor parallel. Numbers are bytes of the tensors that were given to a collective, divided by the
numbers (scalars) that train; in tensor parallel, by the bytes of what one layer hands to the next, and by the layers.
"""

import ctypes
import functools
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if not __package__:
    sys.path[0] = str(ROOT)

from paddlemix.utils import env

COLLECTIVES = ("all_reduce", "broadcast", "reduce", "all_gather", "reduce_scatter")
UPDATES = 2
TENSOR = "tensor parallel"
KINDS: dict[str, dict[str, Any]] = {
    "stage1": {"sharding": "stage1"},
    "stage2": {"sharding": "stage2"},
    "stage3": {"sharding": "stage3"},
    "none": {},  # behind the others: it sets paddle up in a way that none of them can follow in one process
}
LAUNCHES = (("stage1", "stage2", "stage3", "none"), (TENSOR,))
SIZES = {"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 2}
SLICED = 300
"""Stage3 cuts parameters with more numbers than this (paddle's own limit, 2**20, would leave a tiny model whole)."""


def main() -> None:
    """Launch two processes for every kind and print the table."""
    from tests.npu_standin import build

    reason = build.missing()
    if reason:
        raise SystemExit(reason)
    library, found = build.build(), {}
    for kinds in LAUNCHES:
        with tempfile.TemporaryDirectory() as folder:
            script = str(Path(__file__).resolve())
            found.update(build.launch(library, Path(folder), script, TRAFFIC_KINDS=",".join(kinds)))
    print("\n".join(table(found)))


def table(found: dict[str, Any]) -> list[str]:
    """Bytes for each number that trains, by portions of rows for an update."""
    lines = ["| | portions | " + " | ".join(COLLECTIVES) + " |", "|---" * (len(COLLECTIVES) + 2) + "|"]
    for kind, told in found.items():
        for portions, run in told["runs"].items():
            cells = [_cell(run[name], told["unit"]) for name in COLLECTIVES]
            lines.append(f"| {kind} | {portions} | " + " | ".join(cells) + " |")
    return lines


def _cell(counted: list[int], unit: float) -> str:
    calls, size = (number / UPDATES for number in counted)
    return f"{size / unit:.2f} ({calls:.0f} calls)" if size / unit >= 0.005 else "0"


def rank(folder: Path) -> None:
    """One of the two processes; the first writes told.json."""
    import paddle
    import paddle.distributed.sharding as sharding

    sharding.group_sharded_parallel = functools.partial(sharding.group_sharded_parallel, segment_size=SLICED)
    counters = ctypes.CDLL(str(Path(str(env.raw("CUSTOM_DEVICE_ROOT"))) / "libpaddle-custom-npu.so"))
    counters.npu_standin_traffic.restype = ctypes.c_long
    paddle.set_device("npu")
    found: dict[str, Any] = {}
    for kind in str(env.raw("TRAFFIC_KINDS")).split(","):
        if kind == TENSOR:
            found[kind] = _tensor_parallel(counters)
            continue
        found[kind] = {"runs": {}}
        for portions in (1, 3):
            trainer = _trainer(folder, kind, portions)
            found[kind]["runs"][portions] = _counted(trainer, counters)
            found[kind]["unit"] = float(sum(part.trainable for part in trainer.plan.parts))
    if paddle.distributed.get_rank() == 0:
        (folder / "told.json").write_text(json.dumps(found), encoding="utf-8")


def _counted(trainer: Any, counters: Any) -> dict[str, list[int]]:
    """Calls and bytes of ``UPDATES`` updates behind the first."""
    marks: dict[int, dict[str, list[int]]] = {}
    log = trainer._maybe_log_save_evaluate

    def noted(*args: Any, **kwargs: Any) -> Any:
        marks.setdefault(trainer.state.global_step, _read(counters))  # called at the end of an epoch too
        return log(*args, **kwargs)

    trainer._maybe_log_save_evaluate = noted
    trainer.train()
    first, last = marks[1], marks[1 + UPDATES]
    return {name: [b - a for a, b in zip(first[name], last[name], strict=True)] for name in COLLECTIVES}


def _read(counters: Any) -> dict[str, list[int]]:
    return {name: [counters.npu_standin_traffic(name.encode(), which, 0) for which in (0, 1)] for name in COLLECTIVES}


def _trainer(folder: Path, kind: str, portions: int) -> Any:
    from tests.trainer.trainer_kit import Rows, make_trainer, settings, tiny

    run = settings(
        folder, device="npu", bf16=True, fp16_opt_level="O2", amp_master_grad=True, max_steps=UPDATES + 1,
        gradient_accumulation_steps=portions, **KINDS[kind],
    )  # fmt: skip
    return make_trainer(run, rows=Rows(24, equal=True), model=_half(tiny(**SIZES)))


def _half(model: Any) -> Any:
    from paddlemix.models.llava import init_weights

    init_weights(model, 0, "bfloat16")
    return model


def _tensor_parallel(counters: Any) -> dict[str, Any]:
    """Forward and backward of a divided decoder, with ``recompute`` and without; what one more layer sends."""
    import paddle

    paddle.distributed.init_parallel_env()
    rows, positions, runs = 2, 16, {}
    for again in (False, True):
        sent = [_sent_by(layers, again, rows, positions, counters) for layers in (1, 2)]
        runs["recompute" if again else "1"] = {
            name: [(b - a) * UPDATES for a, b in zip(sent[0][name], sent[1][name], strict=True)] for name in COLLECTIVES
        }
    return {"runs": runs, "unit": 2.0 * rows * positions * SIZES["hidden_size"]}


def _sent_by(layers: int, again: bool, rows: int, positions: int, counters: Any) -> dict[str, list[int]]:
    import dataclasses

    import paddle

    from paddlemix.models.llava import build_empty
    from paddlemix.ops.parallel import TensorParallel
    from tests.trainer.trainer_kit import CONFIG

    text = dataclasses.replace(CONFIG.text, **SIZES, num_hidden_layers=layers)
    parallel = TensorParallel(paddle.distributed.get_rank(), 2)
    model = _half(build_empty(CONFIG.with_changes(text=text, vision=None), parallel))
    model.train()
    model.enable_recompute(again)
    ids = paddle.ones([rows, positions], dtype="int64")
    places = paddle.arange(positions).expand([rows, positions])
    source = paddle.arange(rows * positions).reshape([rows, positions])
    before = _read(counters)
    model(token_ids=ids, source=source, positions=places, labels=ids).backward()
    return {
        name: [b - a for a, b in zip(before[name], counted, strict=True)] for name, counted in _read(counters).items()
    }


if __name__ == "__main__":
    if len(sys.argv) > 1:
        rank(Path(sys.argv[1]))
    else:
        main()
