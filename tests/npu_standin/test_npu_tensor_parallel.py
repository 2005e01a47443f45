# SPDX-License-Identifier: Apache-2.0
"""Two stand-in devices that hold one model together train what one CPU trains, save it as one and go on from it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from paddlemix.ops.npu import record
from paddlemix.utils import files
from paddlemix.utils.errors import ConfigError
from tests.npu_standin import build
from tests.npu_standin.conftest import made_once
from tests.tiny import tiny_config, tiny_intern_config, tiny_tokenizer_folder, write_rows

pytestmark = [pytest.mark.npu_standin, pytest.mark.dist]

CLOSE = 1e-5


def write_place(root: Path) -> None:
    """Two models with three heads of 64, which two devices share as two and one; images and rows."""
    from paddlemix.checkpoint.save import save_model
    from paddlemix.models.llava import LlavaForCausalLM, init_weights
    from paddlemix.text.tokenizer import load_tokenizer

    text = dict(hidden_size=192, intermediate_size=99, num_attention_heads=3, num_key_value_heads=3)
    vision = dict(hidden_size=192, intermediate_size=70, num_attention_heads=3)
    siglip = tiny_config()
    siglip = siglip.with_changes(
        text=replace(siglip.text, model_type="qwen2", tie_word_embeddings=True),
        vision=replace(siglip.vision, model_type="siglip_vision_model", hidden_act="gelu_pytorch_tanh"),
    )
    for name, config in (("clip", tiny_config()), ("intern", tiny_intern_config()), ("siglip", siglip)):
        config = config.with_changes(
            text=replace(config.text, **text, vocab_size=449), vision=replace(config.vision, **vision)
        )
        model = LlavaForCausalLM(config)
        init_weights(model, 3)
        save_model(root / name, model, config, load_tokenizer(tiny_tokenizer_folder()))
    (root / "data").mkdir()
    write_rows(root / "data")


def arguments(root: Path, output: Path, model: str, **changes: Any) -> list[str]:
    """A run of four steps and an evaluation."""
    parts = {name: [{"data_files": str(root / "data" / f"{name}.json")}] for name in ("train", "eval")}
    keys = {
        "model_name_or_path": root / model,
        "dataset": json.dumps(parts),
        "image_folder": root / "data",
        "output_dir": output,
        "per_device_train_batch_size": 3,
        "gradient_accumulation_steps": 1,
        "num_train_epochs": 2,
        "learning_rate": 1e-3,
        "max_grad_norm": 0.5,
        "logging_steps": 1,
        "save_strategy": "steps",
        "save_steps": 2,
        "do_train": "true",
        "do_eval": "true",
        **changes,
    }
    return [part for name, value in keys.items() for part in (f"--{name}", str(value))]


CASES = {
    "clip": ("clip", {"tune_entire_model": "true", "recompute": "true"}),
    "siglip": ("siglip", {"tune_entire_model": "true"}),  # on Qwen2, whose head is tied
    "lora": ("intern", {"lora": "true", "lora_rank": 4, "lora_dropout": 0}),
}


@pytest.fixture(scope="session")
def runs(standin: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with each case run on the CPU and on two devices."""
    from paddlemix.settings.run.loader import load_settings
    from paddlemix.trainer.run import finetune

    def make(root: Path) -> None:
        write_place(root)
        cases = {}
        for name, (model, keys) in CASES.items():
            finetune(load_settings(arguments(root, root / f"{name}-cpu", model, device="cpu", **keys)))
            both = dict(device="npu", tensor_parallel_degree=2, **keys)
            cases[name] = arguments(root, root / f"{name}-npu", model, **both)
            both["resume_from_checkpoint"] = root / f"{name}-npu" / "checkpoint-2"
            cases[f"{name} again"] = arguments(root, root / f"{name}-again", model, **both)
        launch(standin, root, cases, devices=2)

    return made_once(tmp_path_factory, "tensor-parallel", make)


def launch(
    standin: Path, root: Path, cases: dict[str, list[str]], devices: int, seconds: float = 300, **environment: str
) -> None:
    """Run every case on so many stand-in devices; all of them are ended after so many seconds."""
    (root / "cases.json").write_text(json.dumps(cases), encoding="utf-8")
    build.launch(standin, root, "tensor_worker.py", devices, seconds, **environment)


def logged(folder: Path, key: str) -> list[float]:
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry[key] for entry in history if key in entry]


def weights(folder: Path, case: str) -> dict[str, np.ndarray]:
    return load_file(folder / ("lora_model_state.safetensors" if case == "lora" else "model.safetensors"))


@pytest.mark.parametrize("case", CASES)
def test_losses_norms_and_evaluation_equal_those_of_one_cpu(runs: Path, case: str) -> None:
    alone, both = runs / f"{case}-cpu", runs / f"{case}-npu"
    assert len(logged(alone, "loss")) == 4
    assert logged(both, "loss") == pytest.approx(logged(alone, "loss"), abs=CLOSE)
    assert logged(both, "grad_norm") == pytest.approx(logged(alone, "grad_norm"), rel=CLOSE)
    results = [json.loads((folder / "all_results.json").read_text()) for folder in (alone, both)]
    assert results[1]["eval_loss"] == pytest.approx(results[0]["eval_loss"], abs=CLOSE)
    for name in ("eval_labels", "train_tokens"):
        assert results[0][name] == results[1][name]


@pytest.mark.parametrize("case", CASES)
def test_the_result_is_one_whole_folder_as_one_cpu_writes_it(runs: Path, case: str) -> None:
    alone, both = runs / f"{case}-cpu", runs / f"{case}-npu"
    assert files.verify_folder(both) == []
    assert files.verify_folder(both / "checkpoint-2") == []
    one, other = weights(alone, case), weights(both, case)
    assert {name: value.shape for name, value in one.items()} == {name: value.shape for name, value in other.items()}
    # Four steps of AdamW at 1e-3: it divides a gradient by its size, so rounding noise near zero moves a weight too.
    assert max(float(np.abs(one[name] - other[name]).max()) for name in one) <= 10 * CLOSE
    before = load_file(runs / CASES[case][0] / "model.safetensors")
    assert any(not np.array_equal(before[name], other[name]) for name in before.keys() & other.keys())


@pytest.mark.parametrize("case", CASES)
def test_a_continued_run_ends_as_the_straight_one_bit_for_bit(runs: Path, case: str) -> None:
    straight, again = weights(runs / f"{case}-npu", case), weights(runs / f"{case}-again", case)
    assert straight.keys() == again.keys()
    assert all(np.array_equal(straight[name], again[name]) for name in straight)
    assert logged(runs / f"{case}-again", "loss") == logged(runs / f"{case}-npu", "loss")


def test_another_number_of_devices_is_refused_with_a_command_that_works(runs: Path) -> None:
    from paddlemix.settings.run.loader import load_settings
    from paddlemix.trainer.run import finetune

    checkpoint = runs / "clip-npu" / "checkpoint-2"
    keys = dict(device="cpu", **CASES["clip"][1])
    output = runs / "alone-from-two"
    with pytest.raises(
        ConfigError, match="tensor_parallel_degree was 2, is -1; number of processes was 2, is 1"
    ) as told:
        finetune(load_settings(arguments(runs, output, "clip", resume_from_checkpoint=checkpoint, **keys)))
    assert str(told.value).endswith(f"start a new run in another output_dir with model_name_or_path {checkpoint}")
    finetune(load_settings(arguments(runs, output, str(checkpoint), max_steps=1, do_eval="false", **keys)))
    assert logged(output, "loss")[0] == pytest.approx(logged(runs / "clip-npu", "loss")[0], rel=0.5)


def test_fused_operators_serve_the_slices(runs: Path) -> None:
    told = json.loads((runs / "told.json").read_text())
    assert told["device"] == "npu:0"
    # Four steps and an evaluation of two decoder layers: each operator is used at least once a layer and step.
    for case in CASES:
        for name, least in (("flash_attention_npu", 8), ("rms_norm_npu", 16), ("fused_rope", 16), ("swiglu", 8)):
            assert told["calls"][case][name] >= least, (case, name)
            assert told["calls"][case][f"{name}_grad"] >= least, (case, name)


# One launch each: paddle keeps the groups of the first run of a process.
@pytest.mark.parametrize(
    "sharding", [pytest.param("", marks=pytest.mark.slow), pytest.param("stage1", marks=pytest.mark.slow), "stage2"]
)
def test_two_groups_of_two_devices_share_data_and_state_as_well(standin: Path, tmp_path: Path, sharding: str) -> None:
    """Two pairs, each with half of the rows: the micro-batches of one CPU that accumulates two."""
    from paddlemix.settings.run.loader import load_settings
    from paddlemix.trainer.run import finetune

    write_place(tmp_path)
    keys = dict(save_strategy="no", tune_entire_model="true")
    alone, both = tmp_path / "cpu", tmp_path / "npu"
    finetune(load_settings(arguments(tmp_path, alone, "clip", device="cpu", gradient_accumulation_steps=2, **keys)))
    keys |= dict(device="npu", tensor_parallel_degree=2, sharding=sharding)
    launch(standin, tmp_path, {"four": arguments(tmp_path, both, "clip", **keys)}, devices=4)
    assert logged(both, "loss") == pytest.approx(logged(alone, "loss"), abs=CLOSE)
    assert logged(both, "grad_norm") == pytest.approx(logged(alone, "grad_norm"), rel=CLOSE)
    one, other = weights(alone, "clip"), weights(both, "clip")
    assert max(float(np.abs(one[name] - other[name]).max()) for name in one) <= 10 * CLOSE


def test_a_bfloat16_step_uses_no_operator_that_the_plug_in_may_lack(standin: Path, tmp_path: Path) -> None:
    write_place(tmp_path)
    keys = dict(bf16="true", fp16_opt_level="O2", amp_master_grad="true", tune_entire_model="true", max_steps=1)
    keys |= dict(device="npu", tensor_parallel_degree=2, save_strategy="no", do_eval="false")
    cases = {"bf16": arguments(tmp_path, tmp_path / "npu", "intern", **keys)}
    launch(
        standin, tmp_path, cases, devices=2, PADDLEMIX_NPU_ATTENTION_FLOAT32="0", NPU_STANDIN_FLOAT32="0", **record.LOG
    )
    for path in sorted((tmp_path / "logs").glob("workerlog.*")):
        with path.open(errors="replace") as lines:
            used = record.read_log(lines, "npu")
        assert {"adamw", "matmul", "take_along_axis"} <= {item.operator for item in used if not item.gradient}
        assert record.objections(used) == []
