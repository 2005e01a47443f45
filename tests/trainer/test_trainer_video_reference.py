# SPDX-License-Identifier: Apache-2.0
"""A training row with a video, read from its frames: loss and gradients are those of transformers' LLaVA-OneVision.

``PADDLEMIX_TORCH_PYTHON`` names an interpreter with torch and transformers.
"""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import paddle
import pytest
from PIL import Image

from paddlemix.checkpoint import keymap
from paddlemix.checkpoint.load import load_model
from paddlemix.datasets.collate import Collator
from paddlemix.datasets.preprocess import SampleEncoder
from paddlemix.datasets.sources import DatasetEntry, read
from paddlemix.imaging.processor import ImageProcessor
from paddlemix.text import templates
from paddlemix.text.tokenizer import load_tokenizer
from paddlemix.utils.constants import IMAGE_TOKEN_INDEX

pytestmark = [pytest.mark.reference, pytest.mark.timeout(300)]
FOLDER = Path(__file__).parents[1] / "data" / "onevision" / "onevision"
WORKER = Path(__file__).with_name("video_worker.py")
GRADIENTS = (
    "model.multi_modal_projector.linear_1.weight",
    "model.language_model.layers.1.self_attn.k_proj.bias",
    "model.vision_tower.encoder.layers.0.mlp.fc1.weight",
    "model.image_newline",
)


def test_loss_and_gradients_are_those_of_transformers(tmp_path):
    python = os.environ.get("PADDLEMIX_TORCH_PYTHON")
    if not python:
        pytest.skip("PADDLEMIX_TORCH_PYTHON names no interpreter with torch")
    rng = np.random.default_rng(5)
    (tmp_path / "clip").mkdir()
    for number in range(3):
        Image.fromarray(rng.integers(0, 256, (41, 57, 3), dtype=np.uint8)).save(tmp_path / "clip" / f"{number}.png")
    talk = [{"from": "human", "value": "<video>\nWhat?"}, {"from": "gpt", "value": "A red square on the left."}]
    (tmp_path / "rows.json").write_text(json.dumps([{"video": "clip", "conversations": talk}]))
    (sample,) = read(DatasetEntry((str(tmp_path / "rows.json"),), str(tmp_path)))
    model = load_model(FOLDER).model
    config = model.config
    processor = ImageProcessor(config.image, config.vision)
    template = templates.get(config.template, training=True)
    encoded = SampleEncoder(load_tokenizer(FOLDER), processor, template, max_length=512)(sample)
    given = {"ids": encoded.ids, "labels": encoded.labels, "pixels": encoded.pixels, "names": np.array(GRADIENTS)}
    assert IMAGE_TOKEN_INDEX == -200
    np.savez(tmp_path / "in.npz", **given)
    command = [python, str(WORKER), str(FOLDER), str(tmp_path / "in.npz"), str(tmp_path / "out.npz")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    theirs = np.load(tmp_path / "out.npz")
    assert encoded.layouts[0].length == theirs["count"]
    batch = Collator(tokens_per_tile=config.tokens_per_tile, tile_side=30)([encoded])
    for parameter in model.parameters():
        parameter.stop_gradient = False
    loss = model(**{name: paddle.to_tensor(value) for name, value in batch.items()})
    assert float(loss) == pytest.approx(float(theirs["loss"]), rel=1e-5)
    loss.backward()
    ours = dict(model.named_parameters())
    for name in GRADIENTS:
        target = keymap.ours(name, "llava_hf_new")
        found, wanted = ours[target.name].grad.numpy(), theirs[name]
        np.testing.assert_allclose(found.T if target.transpose else found, wanted, atol=1e-4 * np.abs(wanted).max())
