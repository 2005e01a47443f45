# SPDX-License-Identifier: Apache-2.0
"""What only a card can show: ``source config/npu/env.sh; python -m pytest -m npu -v -rA`` (docs/npu-first-hour.md).

Every test prints what it measured; the numbers belong into the table at the end of that document. The same tests run
on the stand-in device (tests/npu/test_npu_tests.py), so a fault in the tests themselves is found without a card.
"""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddlemix.settings.model import TextConfig, VisionConfig
from paddlemix.utils import device as devices
from tests.tiny import tiny_config

pytestmark = pytest.mark.npu

ROOT = Path(__file__).resolve().parents[2]
HALF = ("bfloat16", "float16")
CHECKS = ("attention, causal", "attention, padded", "attention, left pad", "attention, image",
          "attention, one token", "rms norm", "rotary", "swiglu")  # fmt: skip


@pytest.fixture(scope="module")
def card() -> str:
    """The device, chosen as a command does it. A machine without one fails: nothing here may pass by being skipped."""
    devices.before_paddle("npu")
    import paddle

    chosen = devices.choose("npu")
    paddle.set_device(chosen.name)
    print(chosen.reason)
    return chosen.name


@pytest.fixture(scope="module")
def checks(card: str) -> dict[str, Any]:
    """The self-check of the doctor in both half precisions, by (dtype, name)."""
    from paddlemix.doctor import operators

    return {(dtype, found.name): found for dtype in HALF for found in operators.self_check(card, dtype)}


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("name", CHECKS)
def test_a_fused_operator_and_its_gradient_equal_the_math(checks: dict[str, Any], dtype: str, name: str) -> None:
    found = checks[dtype, name]
    print(f"{name}: {found.text}")
    assert found.state == "ok", found.text


def test_every_check_of_the_doctor_is_asked_for_here(checks: dict[str, Any]) -> None:
    assert {name for _, name in checks} == set(CHECKS)


def model(dtype: str) -> Any:
    """A LLaVA whose widths the fused operators take, with seeded weights."""
    from paddlemix.models.llava import LlavaForCausalLM, init_weights

    text = TextConfig(
        vocab_size=448,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
    )
    vision = VisionConfig(
        hidden_size=128, intermediate_size=256, num_hidden_layers=3, num_attention_heads=2, image_size=28, patch_size=14
    )
    made = LlavaForCausalLM(replace(tiny_config(), text=text, vision=vision))
    init_weights(made, 0, dtype)
    return made


def batch() -> dict[str, np.ndarray]:
    """Two rows of unequal length with an image each."""
    from paddlemix.imaging.layout import Layout
    from paddlemix.splice.plan import PlanRow, build_plan

    rng = np.random.default_rng(5)
    rows = []
    for before, after in ((4, 20), (3, 8)):
        ids = [1, *rng.integers(3, 440, before).tolist(), -200, *rng.integers(3, 440, after).tolist()]
        labels = [-100] * (before + 2) + ids[before + 2 :]
        rows.append(PlanRow(ids, [Layout(1, np.arange(4, dtype=np.int64))], labels))
    plan = build_plan(rows, tokens_per_tile=4, pad_to_multiple_of=16)
    return {
        "token_ids": plan.token_ids,
        "source": plan.source,
        "positions": plan.positions,
        "labels": plan.labels,
        "pixels": rng.standard_normal([2, 3, 28, 28]).astype(np.float32),
    }


def step(device: str, dtype: str) -> tuple[list[float], dict[str, np.ndarray]]:
    """Losses of four AdamW steps, and the gradients of the first."""
    import paddle

    paddle.set_device(device)
    made = model(dtype)
    made.train()
    tensors = {name: paddle.to_tensor(value) for name, value in batch().items()}
    tensors["pixels"] = tensors["pixels"].astype(dtype)
    optimizer = paddle.optimizer.AdamW(1e-3, parameters=made.parameters(), multi_precision=dtype != "float32")
    losses, gradients = [], {}
    for number in range(4):
        loss = made(**tensors)
        loss.backward()
        if not number:
            gradients = {
                name: parameter.grad.astype("float32").numpy()
                for name, parameter in made.named_parameters()
                if parameter.grad is not None
            }
        optimizer.step()
        optimizer.clear_grad()
        losses.append(float(loss))
    return losses, gradients


def test_training_steps_follow_those_of_the_cpu(card: str) -> None:
    losses, gradients = step(card, "bfloat16")
    exact, exact_gradients = step("cpu", "float32")
    apart = max(abs(a - b) for a, b in zip(losses, exact, strict=True))
    print(f"losses {losses} on {card}, {exact} on the cpu: at most {apart:.4f} apart")
    assert exact[-1] < exact[0] - 0.1
    # bfloat16 keeps 8 bits: 0.4 % of each value; errors of a few layers and steps add up.
    assert apart <= 0.05
    assert set(gradients) == set(exact_gradients)
    for name, value in exact_gradients.items():
        size = float(np.linalg.norm(value))
        assert np.isfinite(gradients[name]).all(), name
        assert float(np.linalg.norm(gradients[name] - value)) <= 0.1 * size + 1e-4, name


def test_a_chat_on_the_card_answers_and_keeps_its_cache(card: str, golden_llava: Path) -> None:
    from PIL import Image

    from paddlemix.generation.load import load_chat
    from paddlemix.generation.sampling import Decoding

    folder = str(golden_llava / "hub" / "liuhaotian" / "llava-v1.5-tiny")
    decoding = Decoding(max_new_tokens=8, temperature=0.0)
    session = load_chat(folder, device="npu", dtype="bfloat16", decoding=decoding)
    picture = Image.new("RGB", (60, 40), (200, 30, 30))
    first = session.answer("what is this?", [picture])
    second = session.answer("and why?")
    print(f"answers {first!r}, {second!r}; {session.stats}")
    fresh = load_chat(folder, device="npu", dtype="bfloat16", decoding=decoding)
    assert fresh.answer("what is this?", [picture]) == first
    assert second is not None


def test_the_chat_command_of_the_readme_runs_in_float16(card: str, golden_llava: Path, tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (60, 40), (20, 30, 200)).save(tmp_path / "picture.png")
    command = [
        sys.executable, "-W", "ignore", str(ROOT / "paddlemix/examples/llava/run_predict_multiround.py"),
        "--model-path", str(golden_llava / "hub" / "liuhaotian" / "llava-v1.5-tiny"),
        "--image-file", str(tmp_path / "picture.png"), "--device", "npu", "--fp16",
        "--temperature", "0", "--max-new-tokens", "4",
    ]  # fmt: skip
    done = subprocess.run(
        command, input="what is this?\n\n", capture_output=True, text=True, timeout=600, env=dict(os.environ)
    )
    assert done.returncode == 0, done.stderr
    assert "float16" in done.stderr


def test_the_speed_of_the_card(card: str) -> None:
    import paddle

    from paddlemix.doctor import speed

    paddle.set_device(card)  # another test may have left the CPU
    for found in speed.findings(card, "bfloat16"):
        print(f"{found.name}: {found.text}")
        assert all(value > 0 for value in found.values.values())
