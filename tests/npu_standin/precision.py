# SPDX-License-Identifier: Apache-2.0
"""Whole trainings in each precision on the stand-in: ``python -m tests.npu_standin.precision modes|overflow``."""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

O2 = {"fp16_opt_level": "O2"}
MASTER = {**O2, "amp_master_grad": "true"}
MODES: dict[str, dict[str, Any]] = {
    "float32": {"device": "cpu"},
    "bf16 O1": {"bf16": "true"},
    "bf16 O2": {"bf16": "true", **O2},
    "bf16 O2 master": {"bf16": "true", **MASTER},
    "fp16 O1": {"fp16": "true"},
    "fp16 O2": {"fp16": "true", **O2},
    "fp16 O2 master": {"fp16": "true", **MASTER},
}
CONTINUED = ("bf16 O2", "fp16 O2 master")
OVERFLOWING = ("fp16 O1", "fp16 O2", "fp16 O2 master")
STEPS = 4
FIRST = {"fp16 O1": 2.0**20, "fp16 O2": 2.0**18, "fp16 O2 master": 2.0**18}
"""A loss scale that is too large for this model by a factor of 4: O1 keeps the head's gradient in float32."""


def train(root: Path, name: str, resume: bool = False, **keys: Any) -> dict[str, Any]:
    """What a run logs and saves. ``resume``: from the second step of the run of the same name."""
    from paddlemix.checkpoint.formats.source import open_file
    from paddlemix.settings.run.loader import load_settings
    from paddlemix.trainer.checkpointing import read_state
    from paddlemix.trainer.run import finetune
    from tests.npu_standin.test_npu_tensor_parallel import arguments, logged

    output = root / (f"{name} again" if resume else name)
    if resume:
        keys["resume_from_checkpoint"] = root / name / "checkpoint-2"
    keys = {"device": "npu", "max_steps": STEPS, "do_eval": "false", "tune_entire_model": "true", **keys}
    finetune(load_settings(arguments(root, output, "clip", **keys)))
    lines = json.loads((output / "trainer_state.json").read_text())["log_history"]
    states = [read_state(output / f"checkpoint-{step}") for step in range(4 if resume else 2, STEPS + 1, 2)]
    return {
        "losses": logged(output, "loss"),
        "norms": logged(output, "grad_norm"),
        "rates": logged(output, "learning_rate"),
        "state": sorted(open_file(output / "checkpoint-4" / "optimizer.safetensors").infos()),
        "skipped": lines[STEPS - 1].get("skipped_updates", 0),
        "scalers": [state.scaler for state in states],
        "schedule": [state.schedule_step for state in states],
    }


def place(root: Path) -> Path:
    from tests.npu_standin.test_npu_tensor_parallel import write_place

    write_place(root)
    return root


def modes(root: Path) -> dict[str, Any]:
    """Every precision, and continued runs."""
    found = {name: train(root, name, **keys) for name, keys in MODES.items()}
    return found | {f"{name} again": train(root, name, resume=True, **MODES[name]) for name in CONTINUED}


def overflow(root: Path) -> dict[str, Any]:
    """A first loss scale that is too large, with float16 gradients and with float32 ones; and one without end."""
    from paddlemix.utils.errors import TrainingError

    found = {}
    for name in OVERFLOWING:
        keys = {**MODES[name], "scale_loss": FIRST[name], "lr_scheduler_type": "linear"}
        found[name] = train(root, name, **keys)
        found[f"{name} again"] = train(root, name, resume=True, **keys)
    return {**found, "norm": norm_under_amp(), "endless": endless(root, TrainingError)}


def endless(root: Path, error: type[Exception]) -> str:
    """What a run says whose gradients overflow with every scale: no scale is below that of the first step."""
    from paddlemix.trainer import scaling

    skipped = scaling.skipped
    scaling.skipped = lambda _: True
    try:
        train(root, "endless", **{**MODES["fp16 O1"], "scale_loss": 0.5})
    except error as caught:
        return str(caught)
    finally:
        scaling.skipped = skipped
    return ""


def norm_under_amp() -> list[float]:
    """RMSNorm of rows whose squares overflow float16, under AMP O1, and the same in float32."""
    import paddle

    from paddlemix.ops.norm import rms_norm

    paddle.set_device("npu")
    x = paddle.to_tensor(np.linspace(100, 600, 64, dtype=np.float32).reshape([1, 2, 32]))
    ones = paddle.ones([32])
    with paddle.amp.auto_cast(level="O1", dtype="float16"):
        cast = rms_norm(x, ones, 1e-6)
    return [float((cast - rms_norm(x, ones, 1e-6)).abs().max()), float(cast.max())]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        result = globals()[sys.argv[1]](place(Path(folder)))
    print("RESULT " + json.dumps(result))
