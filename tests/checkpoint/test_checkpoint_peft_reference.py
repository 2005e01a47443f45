# SPDX-License-Identifier: Apache-2.0
"""peft itself opens our adapters, and we open peft's: on a llava-hf model and on a Llama, beside and folded in."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import paddle
import pytest

from paddlemix.checkpoint.convert.layouts import convert
from paddlemix.checkpoint.load import load_model
from paddlemix.checkpoint.lora.adapter import save_adapter
from paddlemix.generation.folder import processor_for
from paddlemix.ops.linear import add_lora, lora_layers
from paddlemix.splice.plan import PlanRow, build_plan
from paddlemix.text.tokenizer import load_tokenizer
from tests.checkpoint import checkpoint_kit as kit
from tests.tiny import tiny_image, tiny_model

pytestmark = [pytest.mark.reference, pytest.mark.timeout(300)]
WORKER = Path(__file__).with_name("peft_worker.py")
TEXT = "USER: {}What is shown? ASSISTANT:"


def peft(what: str, base: Path, adapter: Path, inputs: Path, *more: str) -> dict[str, np.ndarray]:
    python = os.environ.get("PADDLEMIX_TORCH_PYTHON")
    if not python:
        pytest.skip("PADDLEMIX_TORCH_PYTHON names no interpreter with torch")
    command = [python, str(WORKER), what, str(base), str(adapter), str(inputs), *more]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    return {name: np.array(value) for name, value in json.loads(done.stdout.splitlines()[-1]).items()}


def ours(loaded, inputs: Path, picture: bool) -> np.ndarray:
    """Our scores for a prompt, and the inputs written for the worker."""
    tokenizer = load_tokenizer(loaded.tokenizer_folder)
    ids = tokenizer.encode_with_images(TEXT.format("<image>\n" if picture else ""))
    done = processor_for(loaded.config)(tiny_image(3, (90, 60))) if picture else None
    plan = build_plan([PlanRow(ids, [done.layout] if done else [])], tokens_per_tile=4)
    spread = [-1 if number < 0 else number for number in ids for _ in range(4 if number < 0 else 1)]
    np.savez(inputs, ids=np.array(spread), **({"pixels": done.pixels} if done else {}))
    arguments = [paddle.to_tensor(array) for array in (plan.token_ids, plan.source, plan.positions)]
    with paddle.no_grad():
        pixels = paddle.to_tensor(done.pixels) if done else None
        return loaded.model(*arguments, pixels=pixels).numpy()[0]


@pytest.fixture
def hub(tmp_path):
    folders = kit.hub(tmp_path, tiny_model(2))
    return {**folders, "hf": convert(folders["llava"], tmp_path / "llava-hf" / "tiny", "llava-hf").folder}


METHODS = {
    "lora": {},
    "dora": {"dora": True},
    "rslora": {"rslora": True},
    "pissa": {"pissa": True},
    "all": {"dora": True, "rslora": True, "pissa": True},
}
DECODER = [r"llama.layers.*(q|o|down)_proj"]
EVERYWHERE = [*DECODER, r".*vision_tower.*(q_proj|fc1)", r"llama.mm_projector.0"]


def trained(hub, place: Path, method: str = "lora", targets=DECODER, whole=("mm_projector",)) -> Path:
    """An adapter of ours on a LLaVA with other parts that have trained whole."""
    loaded = load_model(hub["llava"])
    add_lora(loaded.model, targets, 3, 6.0, 0.1, **METHODS[method])
    rng = np.random.default_rng(0)
    for name, parameter in loaded.model.named_parameters():
        parameter.stop_gradient = not (".lora_" in name or any(part in name for part in whole))
        if not parameter.stop_gradient:
            drawn = rng.normal(0, 0.3, parameter.shape).astype(np.float32)
            parameter.set_value(parameter + paddle.to_tensor(drawn) if "magnitude" in name else paddle.to_tensor(drawn))
    tokenizer = load_tokenizer(hub["llava"])
    return save_adapter(place, loaded.model, loaded.config, tokenizer, base=hub["llava"], vision_tower=hub["clip"])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("to", "under"), [("llava-hf", "hf"), ("original", "vicuna")])
def test_an_adapter_of_ours_opens_in_peft_with_our_scores(to, under, method, hub, tmp_path):
    require_same_scores(trained(hub, tmp_path / "liuhaotian" / "lora", method), to, under, hub, tmp_path)


@pytest.mark.parametrize("whole", [(), ("embed_tokens", "lm_head", "mm_projector.2", "layers.1.input_layernorm")])
def test_adapters_of_the_tower_and_the_projector_and_whole_modules_open_in_peft(whole, hub, tmp_path):
    adapter = trained(hub, tmp_path / "liuhaotian" / "lora", "dora", EVERYWHERE, whole)
    require_same_scores(adapter, "llava-hf", "hf", hub, tmp_path)


def require_same_scores(adapter, to, under, hub, tmp_path):
    made = convert(adapter, tmp_path / "peft", to, base=hub[under] if to == "llava-hf" else None).folder
    kept = load_model(adapter, lora="keep")
    expected = ours(kept, tmp_path / "inputs.npz", picture=to == "llava-hf")
    plain = ours(load_model(hub["llava"]), tmp_path / "plain.npz", picture=to == "llava-hf")
    assert np.abs(expected - plain).max() > 0.1
    found = peft("open", hub[under], made, tmp_path / "inputs.npz")
    assert found["layers"] == len(list(lora_layers(kept.model)))
    for way in ("beside", "folded"):
        np.testing.assert_allclose(found[way][:, : expected.shape[1]], expected, rtol=1e-4, atol=1e-4, err_msg=way)


@pytest.mark.parametrize("method", ["rslora", "dora", "pissa", "saved"])
@pytest.mark.parametrize("under", ["hf", "vicuna"])
def test_an_adapter_of_pefts_opens_here_with_its_scores(under, method, hub, tmp_path):
    picture = under == "hf"
    ours(load_model(hub[under]), tmp_path / "inputs.npz", picture)
    expected = peft("make", hub[under], tmp_path / "made", tmp_path / "inputs.npz", method)["beside"]
    for way in ("merge", "keep"):
        loaded = load_model(tmp_path / "made", lora=way)
        found = ours(loaded, tmp_path / "again.npz", picture)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4, err_msg=way)
