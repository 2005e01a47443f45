# SPDX-License-Identifier: Apache-2.0
"""What a llava-hf config.json leaves out is what transformers' configuration classes take.

``PADDLEMIX_TORCH_PYTHON`` names an interpreter with transformers.
"""

import json
import os
import subprocess

import pytest

from paddlemix.settings.published.config import load_config
from tests.settings.test_settings_published import Hub

pytestmark = [pytest.mark.reference, pytest.mark.timeout(300)]
ASK = """
import json, sys
from transformers import AutoConfig
found = []
for folder in sys.argv[1:]:
    one = AutoConfig.from_pretrained(folder)
    vision, text = one.vision_config, one.text_config
    found.append({
        "grid": getattr(one, "image_grid_pinpoints", None), "layer": one.vision_feature_layer,
        "strategy": one.vision_feature_select_strategy, "aspect": getattr(one, "vision_aspect_ratio", None),
        "vision": [vision.model_type, vision.hidden_size, vision.intermediate_size, vision.num_hidden_layers,
                   vision.num_attention_heads, vision.image_size, vision.patch_size],
        "text": [text.model_type, text.hidden_size, text.num_hidden_layers, text.vocab_size, text.num_key_value_heads],
    })
print(json.dumps(found))
"""
KINDS = ("llava", "llava_next", "llava_onevision")


def test_silent_files_are_read_as_transformers_reads_them(tmp_path):
    python = os.environ.get("PADDLEMIX_TORCH_PYTHON")
    if not python:
        pytest.skip("PADDLEMIX_TORCH_PYTHON names no interpreter with transformers")
    hub = Hub(tmp_path / "hub")
    parts = {
        "": {"text_config": {}},
        "-parts": {"text_config": {"num_hidden_layers": 3}, "vision_config": {"num_hidden_layers": 5}},
    }
    folders = [hub.write(kind + end, {"model_type": kind, **more}) for kind in KINDS for end, more in parts.items()]
    done = subprocess.run([python, "-c", ASK, *map(str, folders)], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    for folder, theirs in zip(folders, json.loads(done.stdout.splitlines()[-1]), strict=True):
        ours = load_config(folder)
        vision, text, image = ours.vision, ours.text, ours.image
        assert [[height, width] for width, height in image.grid_pinpoints] == (theirs["grid"] or [])
        assert vision.select_layer == theirs["layer"]
        assert vision.select_feature == (
            "patch" if theirs["strategy"] == "default" or not vision.class_tokens else "cls_patch"
        )
        assert (f"anyres_max_{image.max_tiles}" if image.max_tiles else None) == theirs["aspect"]
        assert [vision.model_type, vision.hidden_size, vision.intermediate_size, vision.num_hidden_layers,
                vision.num_attention_heads, vision.image_size, vision.patch_size] == theirs["vision"]  # fmt: skip
        found = [text.model_type, text.hidden_size, text.num_hidden_layers, text.vocab_size, text.num_key_value_heads]
        assert found == theirs["text"], folder
