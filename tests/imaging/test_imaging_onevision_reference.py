# SPDX-License-Identifier: Apache-2.0
"""anyres_max_N against HF transformers, whose LLaVA-OneVision has the rule of LLaVA-NeXT: the same rows in order."""

import dataclasses
import os
import subprocess
from pathlib import Path

import numpy as np
import paddle
import pytest

from paddlemix.checkpoint.convert.layouts import convert
from paddlemix.checkpoint.save import save_model
from paddlemix.imaging.layout import token_count
from paddlemix.imaging.processor import ImageProcessor
from paddlemix.settings.model import ImageConfig
from paddlemix.splice.plan import PlanRow, build_plan
from paddlemix.text.tokenizer import load_tokenizer
from paddlemix.utils.constants import IMAGE_TOKEN_INDEX
from tests.tiny import tiny_config, tiny_image, tiny_model, tiny_tokenizer_folder

pytestmark = [pytest.mark.reference, pytest.mark.timeout(300)]
WORKER = Path(__file__).with_name("onevision_worker.py")
SIDE = 56
TILES = (1, 4, 9)
PINPOINTS = tuple((SIDE * w, SIDE * h) for w in range(1, 5) for h in range(1, 5))
# (height, width): one tile, wide, tall, exactly the largest, larger, thin, just above a tile, odd.
SIZES = [(56, 56), (30, 41), (60, 200), (200, 60), (224, 224), (500, 500), (40, 900), (700, 33), (57, 113), (333, 97)]


def merged(model, done) -> np.ndarray:
    """Our rows of one image: float32 [tokens, width]."""
    plan = build_plan([PlanRow(np.array([IMAGE_TOKEN_INDEX]), [done.layout])], tokens_per_tile=16)
    blend = None
    if plan.blend_index is not None:
        blend = (paddle.to_tensor(plan.blend_index), paddle.to_tensor(plan.blend_weight))
    with paddle.no_grad():
        features = model.encode_images(paddle.to_tensor(done.pixels))
        return model.embed(paddle.to_tensor(plan.token_ids), paddle.to_tensor(plan.source), features, blend)[0].numpy()


def theirs(folder: Path, inputs: Path) -> dict[str, np.ndarray]:
    python = os.environ.get("PADDLEMIX_TORCH_PYTHON")
    if not python:
        pytest.skip("PADDLEMIX_TORCH_PYTHON names no interpreter with torch")
    out = inputs.with_name("out.npz")
    command = [python, str(WORKER), str(folder), str(inputs), str(out), *map(str, TILES)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(np.load(out))


def test_rows_of_anyres_max_equal_those_of_transformers(tmp_path):
    image = ImageConfig(SIDE, SIDE, "anyres", "spatial_unpad", PINPOINTS)
    vision = dataclasses.replace(tiny_config().vision, image_size=SIDE)
    model = tiny_model(4, config=tiny_config(image=image, vision=vision, has_image_newline=True))
    save_model(tmp_path / "own", model, model.config, load_tokenizer(tiny_tokenizer_folder()))
    folder = convert(tmp_path / "own", tmp_path / "hf", "llava-hf").folder
    pictures = [tiny_image(number, (width, height)) for number, (height, width) in enumerate(SIZES)]
    plain = ImageProcessor(image, vision)
    pixels = {f"pixels_{number}": plain(picture).pixels for number, picture in enumerate(pictures)}
    np.savez(tmp_path / "inputs.npz", sizes=np.array(SIZES), **pixels)
    expected = theirs(folder, tmp_path / "inputs.npz")
    blended = 0
    for tiles in TILES:
        limited = dataclasses.replace(image, max_tiles=tiles)
        for number, (size, picture) in enumerate(zip(SIZES, pictures, strict=True)):
            done = ImageProcessor(limited, vision)(picture)
            found, wanted = merged(model, done), expected[f"features_{tiles}_{number}"]
            assert len(found) == token_count(size, limited, vision) == len(wanted), (tiles, size)
            # Each row by its own size: features are near 1000, newlines near 1. The towers differ by up to 2e-5.
            scale = np.abs(wanted).max(axis=1, keepdims=True)
            np.testing.assert_allclose(found / scale, wanted / scale, atol=1e-4, err_msg=f"{tiles} {size}")
            blended += done.layout.blend is not None
    assert 3 * len(TILES) < blended < len(SIZES) * len(TILES)
